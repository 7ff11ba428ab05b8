"""The data plane: disks as extents of bytes, from readers to writers. It knows no jobs."""
