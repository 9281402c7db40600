"""A run's curves in W&B, MLflow and ClearML: read from its directory, sent by a separate process each."""
