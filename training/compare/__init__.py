"""A fair comparison of several models on one data set: tuned alike on validation, judged once on test."""
