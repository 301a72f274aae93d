"""How answers are got from a model and judged, one module a kind of task."""
