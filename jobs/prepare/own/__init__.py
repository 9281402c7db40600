"""A dataset of the user's own images: checked, split, described, and a config that trains on it."""
