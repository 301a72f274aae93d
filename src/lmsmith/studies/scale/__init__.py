"""Effects of shots, size and a chain of thought in tiny models (Brown et al. 2020)."""
