"""Segmenting any image with a run's model."""
