"""Trained models as files for other programs: a standalone model for each of many tasks, and ONNX."""
