"""Files of many formats as documents: one file a format."""
