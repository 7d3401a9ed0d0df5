"""A container and an exec as lists of ops: pure data, from what was asked and prepared."""
