"""What a run made, told to a person: its metrics, its figures and one self-contained page."""

from __future__ import annotations
