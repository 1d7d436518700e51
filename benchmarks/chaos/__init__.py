"""Faults made on purpose, on real processes: what the service does when something breaks under load.

One file a fault, or a family of them; `fault.py` says what a fault is, `python -m benchmarks.chaos` runs them.
"""
