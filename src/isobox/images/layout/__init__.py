"""An OCI image layout on disk (image-spec, image-layout.md): its lock, blobs, index and the way through."""
