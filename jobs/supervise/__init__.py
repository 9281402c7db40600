"""One supervisor a rank, no torch: it runs the worker and outlives it, and they decide together."""
