"""Projected Compression on a pretrained model of 260 thousand parameters: arms, sweeps of learning rates, tables."""
