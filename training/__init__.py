"""Offline training: the only package that imports torch."""

import index as index  # before ONNX Runtime: it says that nothing is to be reported
