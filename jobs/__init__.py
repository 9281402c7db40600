"""What runs on compute nodes: prepare, train, evaluate, infer, export."""
