"""lmsmith: make a ChatGPT of your own, and know what is in it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lmsmith.core.version import VERSION as __version__

if TYPE_CHECKING:
    from lmsmith.api import add_task as add_task
    from lmsmith.api import compare as compare
    from lmsmith.api import evaluate as evaluate
    from lmsmith.api import export as export
    from lmsmith.api import pull as pull
    from lmsmith.api import run as run
    from lmsmith.api import score as score
    from lmsmith.api import study as study
    from lmsmith.api import study_scale as study_scale
    from lmsmith.api import task_function as task_function
    from lmsmith.bert_study import study_bert as study_bert
    from lmsmith.core.errors import UserError as UserError
    from lmsmith.corpora import build_corpus as build_corpus
    from lmsmith.corpora import compare_corpora as compare_corpora
    from lmsmith.corpora import corpus_statistics as corpus_statistics
    from lmsmith.corpora import look_at_corpus as look_at_corpus
    from lmsmith.corpora import search_corpus as search_corpus
    from lmsmith.encoders import embed as embed
    from lmsmith.encoders import fill_mask as fill_mask
    from lmsmith.encoders import load_embedder as load_embedder
    from lmsmith.finetuning import finetune as finetune
    from lmsmith.finetuning import study_finetune as study_finetune
    from lmsmith.flan_study import study_flan as study_flan
    from lmsmith.judgements import backup_feedback as backup_feedback
    from lmsmith.judgements import export_feedback as export_feedback
    from lmsmith.judgements import feedback_statistics as feedback_statistics
    from lmsmith.judgements import import_feedback as import_feedback
    from lmsmith.judgements import rank_feedback as rank_feedback
    from lmsmith.judgements import restore_feedback as restore_feedback
    from lmsmith.judgements import sample_feedback as sample_feedback
    from lmsmith.library import LanguageModel as LanguageModel
    from lmsmith.library import load as load
    from lmsmith.offsite import offsite_emulator as offsite_emulator
    from lmsmith.offsite import offsite_plug as offsite_plug
    from lmsmith.offsite import offsite_tune as offsite_tune
    from lmsmith.offsite_study import offsite_compare as offsite_compare
    from lmsmith.planning import plan as plan
    from lmsmith.rlhf.ppo import PPOConfig as PPOConfig
    from lmsmith.rlhf.ppo import PPOTrainer as PPOTrainer
    from lmsmith.server.serve import serve as serve
    from lmsmith.translation import load_translator as load_translator
    from lmsmith.translation import translate as translate

_API = (
    "add_task", "compare", "evaluate", "export", "pull", "run", "score", "study", "study_scale",
    "task_function",
)  # fmt: skip
_JUDGEMENTS = (
    "backup_feedback", "export_feedback", "feedback_statistics", "import_feedback",
    "rank_feedback", "restore_feedback", "sample_feedback",
)  # fmt: skip

_WHERE = {
    "LanguageModel": "lmsmith.library",
    "PPOConfig": "lmsmith.rlhf.ppo",
    "PPOTrainer": "lmsmith.rlhf.ppo",
    "UserError": "lmsmith.core.errors",
    **dict.fromkeys(("finetune", "study_finetune"), "lmsmith.finetuning"),
    **dict.fromkeys(("build_corpus", "compare_corpora", "corpus_statistics"), "lmsmith.corpora"),
    **dict.fromkeys(("look_at_corpus", "search_corpus"), "lmsmith.corpora"),
    "load": "lmsmith.library",
    "plan": "lmsmith.planning",
    "load_translator": "lmsmith.translation",
    "translate": "lmsmith.translation",
    "embed": "lmsmith.encoders",
    "fill_mask": "lmsmith.encoders",
    "load_embedder": "lmsmith.encoders",
    **dict.fromkeys(("offsite_emulator", "offsite_plug", "offsite_tune"), "lmsmith.offsite"),
    "offsite_compare": "lmsmith.offsite_study",
    "serve": "lmsmith.server.serve",
    "study_bert": "lmsmith.bert_study",
    "study_flan": "lmsmith.flan_study",
    **dict.fromkeys(_API, "lmsmith.api"),
    **dict.fromkeys(_JUDGEMENTS, "lmsmith.judgements"),
}
"""Where each public name lives; imported at its first use, since torch takes seconds."""

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
