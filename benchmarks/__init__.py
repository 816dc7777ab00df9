"""Scripts that measure, and the dated tables that they wrote."""
