"""Trainings to measure: the same config and data, run as our jobs run it and by mmengine's own runner."""
