"""What everything looks like, on the wire and on disk: pydantic models and nothing else."""
