"""What a run keeps of itself: folders, fingerprints, records, locks, signals and logs."""
