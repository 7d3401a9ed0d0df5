"""Tar archives, compressed or not, read and written as streams. Nothing in one is trusted."""
