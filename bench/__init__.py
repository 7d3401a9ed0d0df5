"""What isobox costs, against the kernel's own price (floor.c) and other engines: ``python -m bench``."""
