"""Studies of in-context learning and of scale."""
