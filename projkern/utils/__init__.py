"""What every room uses and that knows nothing of models: commands, files, tensors, devices, seeds, pictures."""
