"""Root file systems: what a container's "/" is made of, and what became of it."""
