"""Bring published data sets, and tables of any kind, into the dataset folder."""
