"""Costs of training: seconds, memory."""
