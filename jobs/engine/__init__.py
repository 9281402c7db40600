"""The training engine, based on torch alone: preemption, saving, checkpoints, communication of ranks."""
