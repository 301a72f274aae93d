"""The page of a finished corpus."""
