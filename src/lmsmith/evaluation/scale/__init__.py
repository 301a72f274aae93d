"""Emergence on a laptop: tiny models of several sizes, trained and measured on generated data."""
