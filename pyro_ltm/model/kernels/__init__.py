"""Kernels of the decoder: attention, the vocabulary head, packed weights."""
