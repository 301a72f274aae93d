"""Models over HTTP: an API that OpenAI's clients know, and the engine thread behind it."""
