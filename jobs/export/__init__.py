"""What others take of a run: the best weights with their config, and the model as ONNX."""
