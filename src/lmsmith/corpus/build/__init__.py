"""Builds a corpus: from piles of raw text to token shards."""
