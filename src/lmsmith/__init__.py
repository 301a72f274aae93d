"""lmsmith: make a ChatGPT of your own, and know what is in it."""

from __future__ import annotations

__version__ = "0.1.0"
