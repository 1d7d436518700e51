"""Other servers on the same task, with the same client, on the same machine: one file a server.

`task.py` says what is asked of all of them, `python -m benchmarks.peers` measures them.
"""
