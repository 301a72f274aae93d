"""Bookkeeping of a run: folders, fingerprints, records, locks, signals and logs."""
