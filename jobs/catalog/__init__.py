"""What is known without loading a training library: models, weights and datasets, and what lies ready.
The login node reads it too."""
