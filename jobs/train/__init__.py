"""The training job: start at `__main__` (one task) and read downwards."""
