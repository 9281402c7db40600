"""Exports a run for use elsewhere: the best weights with their config, and the model as ONNX."""
