"""Images in and out of files: OCI layouts, ``docker save`` archives, root file systems."""
