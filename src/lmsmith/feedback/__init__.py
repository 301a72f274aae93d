"""Conversations with models and judgements of answers, in one database, exported for training."""
