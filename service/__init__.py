"""The online service: loads one snapshot with the bundle it names and answers from it."""
