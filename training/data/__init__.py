"""From a dataset folder to training batches and held-out users; and the commands that make and import such folders."""
