"""The training engine, on torch alone: preemption, saving, checkpoints, what ranks exchange."""
