"""The dataset job: download, archives, convert, verify."""
