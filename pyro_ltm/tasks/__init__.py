"""A run on tasks: texts, arithmetic, written texts."""
