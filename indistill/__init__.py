"""Compress an image-embedding model by InDistill, export it, index a gallery, measure what is deployed."""

__version__ = "0.1.0"
