"""A file system whose metadata calls are slow, over a directory that is there."""
