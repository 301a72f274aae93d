"""Property tests: no deadline for one example, since a busy machine is no bug."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("lmsmith", deadline=None)
settings.load_profile("lmsmith")
