"""lmsmith: make a ChatGPT of your own, and know what is in it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lmsmith.core.version import VERSION as __version__

if TYPE_CHECKING:
    from lmsmith.core.errors import UserError as UserError
    from lmsmith.library import LanguageModel as LanguageModel
    from lmsmith.library import load as load
    from lmsmith.rlhf.ppo import PPOTrainer as PPOTrainer
    from lmsmith.rlhf.ppo_config import PPOConfig as PPOConfig

_WHERE = {
    "LanguageModel": "lmsmith.library",
    "PPOConfig": "lmsmith.rlhf.ppo_config",
    "PPOTrainer": "lmsmith.rlhf.ppo",
    "UserError": "lmsmith.core.errors",
    "load": "lmsmith.library",
}
"""Where each public name lives; imported when first asked for, since torch takes seconds."""

__all__ = ["LanguageModel", "PPOConfig", "PPOTrainer", "UserError", "__version__", "load"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
