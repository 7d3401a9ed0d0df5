"""Registries of images over HTTP (OCI distribution-spec): imported where one is asked for, never before."""
