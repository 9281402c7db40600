"""A run's curves in W&B, MLflow and ClearML: read from its directory, sent by a process of their own."""
