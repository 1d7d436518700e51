"""Artefacts, features and vectors: all that lies between a training run and a loaded service."""
