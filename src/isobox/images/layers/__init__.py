"""Layers: unpacked on disk as folders or as one EROFS file, and written from what a container changed."""
