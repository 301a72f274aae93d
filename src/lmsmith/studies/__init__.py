"""What models take from the examples they are shown, and what grows with scale."""
