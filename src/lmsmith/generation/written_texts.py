"""Texts that a teacher writes for a student to learn from (Kim and Rush 2016, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmsmith.core.errors import Interrupted
from lmsmith.core.files import growing_rows, write_jsonl
from lmsmith.core.progress import Progress
from lmsmith.generation.engine import InferenceDecoder, generate
from lmsmith.generation.settings import SamplingSettings
from lmsmith.models.decoder import Decoder
from lmsmith.prompts.sft_rows import Window
from lmsmith.runs.signals import stop_requested
from lmsmith.runs.stage_folder import derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

TEXTS_AT_ONCE = 64
"""Texts that are written, and saved, together."""


@dataclass(frozen=True)
class WrittenText:
    """A prompt and what the teacher wrote after it, in tokens; its end is part of it."""

    id: str
    prompt: list[int]
    reply: list[int]

    def window(self) -> Window:
        """The tokens, of which the teacher's are targets."""
        learnt = [False] * len(self.prompt) + [True] * len(self.reply)
        return [*self.prompt, *self.reply], learnt


def write_texts(
    path: Path,
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[str, list[int]]],
    settings: SamplingSettings,
    machine: ResolvedMachine,
    progress: Progress,
) -> list[WrittenText]:
    """Continue every prompt, and keep the texts in a JSONL file; one that was begun is continued.

    Args:
        prompts: ids and tokens.
        settings: its seed gives each group of `TEXTS_AT_ONCE` prompts one of its own.

    Raises:
        Interrupted: a signal asked to stop; what is written is saved.
    """
    rows: list[dict[str, Any]] = growing_rows(path)
    done = len(rows) if len(rows) >= len(prompts) else len(rows) // TEXTS_AT_ONCE * TEXTS_AT_ONCE
    rows = rows[:done]
    progress.begin("the teacher writes", len(prompts), "texts", done)
    engine = InferenceDecoder(decoder, machine) if done < len(prompts) else decoder
    for first in range(done, len(prompts), TEXTS_AT_ONCE):
        if (signal_number := stop_requested()) is not None:
            raise Interrupted(signal_number)
        group = prompts[first : first + TEXTS_AT_ONCE]
        drawn = replace(settings, seed=derive_seed(settings.seed, first))
        asked = [tokens for _, tokens in group]
        replies = generate(engine, asked, drawn, machine=machine, tokenizer=tokenizer)
        for (name, tokens), reply in zip(group, replies, strict=True):
            text = tokenizer.decode([t for t in reply if t not in settings.stop_tokens])
            rows.append({"id": name, "text": text, "prompt": tokens, "reply": reply})
        write_jsonl(path, rows)
        progress.update(len(rows))
    progress.end()
    return [WrittenText(str(row["id"]), row["prompt"], row["reply"]) for row in rows]
