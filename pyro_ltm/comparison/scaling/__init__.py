"""Scaling studies: what size, thoughts, fast steps and data are worth, measured cell by cell."""
