"""Artefacts, features and vectors: all that lies between a training run and a loaded service."""

import os

# ONNX Runtime reports its use to its makers and keeps a device id in the home folder, from 1.29 on also under Linux,
# unless this is there before it is loaded. What this product computes is nobody else's to know.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
