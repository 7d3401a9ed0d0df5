"""The documents of images as values: names, digests, descriptors, indexes, manifests, configs. No I/O."""
