"""Noise, scores, networks, losses, samplers and training."""
