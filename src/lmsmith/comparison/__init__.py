"""Two models on the same items, judges, and win rates."""
