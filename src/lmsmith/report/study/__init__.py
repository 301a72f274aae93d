"""Pages of studies: in-context and scale."""
