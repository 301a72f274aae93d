"""Models by name: found, fetched, read whatever their format, and exported."""
