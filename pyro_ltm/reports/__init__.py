"""Pictures, tables and pages of figures that other rooms computed."""
