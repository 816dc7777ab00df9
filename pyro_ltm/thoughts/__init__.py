"""What thoughts carry: rates and mutual information, probes."""
