"""Real images as tokens: the training of a VQ-VAE, and the folder of tokens that training reads."""
