"""Latent-thought language models as a probabilistic program."""

__version__ = "0.1.0"
