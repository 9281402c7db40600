"""One supervisor per rank, without torch: each runs its worker and outlives it, and they decide together."""
