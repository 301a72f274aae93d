"""Labelled data: tables of examples in files, and the task that names their columns."""
