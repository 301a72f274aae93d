"""A finished corpus read again: its documents, a position, a phrase, its figures, a difference."""
