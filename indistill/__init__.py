"""Compress an image-embedding model by InDistill, export it, index a gallery, measure what is deployed."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else ONNX Runtime tells its makers of every session

__version__ = "0.1.0"
