"""Routes of the page, under ``/api``."""
