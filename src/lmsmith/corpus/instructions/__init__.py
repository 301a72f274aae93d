"""Instructions: labelled tasks written out in templates, clusters of tasks, and their mixture."""
