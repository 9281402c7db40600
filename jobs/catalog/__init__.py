"""What is known without loading a training library: models, weights, datasets, and which of them are ready.
Also used on the login node."""
