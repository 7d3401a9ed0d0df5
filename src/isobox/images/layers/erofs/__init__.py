"""Write a file system as one file that the kernel mounts: EROFS, uncompressed.

The format is that of Documentation/filesystems/erofs.rst ("On-disk details") and fs/erofs/erofs_fs.h in
Linux:

    block 0     the superblock at 1024; behind it the inode of the root, with its attributes
    elsewhere   blocks of data, and areas of inodes, in the order in which files come

An inode is known by its place in the file, in units of 32 bytes (nid). All are of the extended form,
64 bytes, for owners of 32 bits and times to the nanosecond. Behind an inode lie its extended attributes,
and then, where it is short, what remains of the data after whole blocks (FLAT_INLINE, which must not cross
the end of a block), or the numbers of the blocks of a sparse file (CHUNK_BASED). What directories hold is
known at the end only.
"""
