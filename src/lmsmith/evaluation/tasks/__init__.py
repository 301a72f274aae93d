"""Tasks: what is asked, how it is written, and what counts as right; each is a TOML file."""
