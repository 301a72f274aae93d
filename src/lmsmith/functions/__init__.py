"""A task as a function of texts: what ``tasks run`` and ``/v1/tasks`` serve."""
