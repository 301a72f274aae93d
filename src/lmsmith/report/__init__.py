"""A run's metrics and figures, and one self-contained page of a run, evaluation or study."""
