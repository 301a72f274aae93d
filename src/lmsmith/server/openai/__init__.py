"""Routes that OpenAI's clients know, and those beside them under ``/v1``."""
