"""Thoughts: how much they carry, what can be read off them, the figures of a report."""
