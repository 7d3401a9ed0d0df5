"""OCI images: what they are made of, where they are kept, and how their layers get onto disk."""
