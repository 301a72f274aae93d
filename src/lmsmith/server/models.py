"""The served models: read, named, and given their share of memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmsmith.catalogue.reading import ReadModel, read_draft_model, read_model
from lmsmith.catalogue.resolve import Sampling, advised_sampling, resolve
from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.scheduler import Scheduler
from lmsmith.generation.speculative import PROMPT_LOOKUP, Drafter, DraftModel, PromptLookup
from lmsmith.server.errors import ApiError
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

GIGABYTE = 10**9


@dataclass
class ServedModel:
    """A model with its scheduler."""

    name: str  # for clients
    tokenizer: Tokenizer
    scheduler: Scheduler  # used in the engine thread alone
    created: int  # time of loading, seconds since 1970
    weight_bytes: int  # in memory
    cache_bytes: int  # at most
    advised: Sampling  # that its makers advise
    source: str  # the path or name that commands take

    @property
    def context(self) -> int:
        return self.scheduler.model.config.context


def served_model(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """The model of that name, or the first one; raises ApiError (404) for an unknown name."""
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        problem = f"there is no model {name!r} here; there is: {', '.join(models)}"
        raise ApiError(404, problem, param="model", code="model_not_found")
    return models[name]


def _name_and_model(word: str) -> tuple[str, str]:
    """Both of ``NAME=MODEL``; a model alone is named by the last part of its path."""
    name, equals, model = word.partition("=")
    if equals and name and model and not Path(word).exists():
        return name, model
    return Path(resolve(word).name).name or word, word


def read_models(words: Sequence[str]) -> dict[str, ReadModel]:
    """Models by name; raises UserError if one cannot be read, or two have one name."""
    named = [_name_and_model(word) for word in words]
    names = [name for name, _ in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two models are called {twice}", f"name one: other={twice}")
    return {name: read_model(model) for name, model in named}


def serve_models(
    models: dict[str, ReadModel],
    *,
    machine: ResolvedMachine,
    weights: Literal["model", "int8"],
    draft: str = "",
    memory_bytes: int,
    streams: int,
) -> list[ServedModel]:
    """Prepare models for serving, within a budget.

    Args:
        models: by name.
        machine: gives the precision.
        weights: as they are in that precision, or ``int8``.
        draft: a smaller model that guesses the tokens of each, or ``prompt-lookup``.
        memory_bytes: for all weights and caches, the draft's too; 0 gives every cache `GIGABYTE`.
        streams: replies generated together, of each model.

    Raises:
        UserError: the budget has no room for the weights and a context of each model, or the
            draft has another tokenizer than one of them.
    """
    ready = {
        name: InferenceDecoder(found.decoder, machine, weights=weights)
        for name, found in models.items()
    }
    sizes = {name: _memory_of(model) for name, model in ready.items()}
    fixed = sum(sizes.values())
    drafters: dict[str, Drafter] = {name: PromptLookup() for name in models if draft}
    if draft and draft != PROMPT_LOOKUP:
        decoder = read_draft_model(draft, models.values())
        smaller = InferenceDecoder(decoder, machine, weights=weights)
        drafts = {name: DraftModel(smaller) for name in models}
        fixed += _memory_of(smaller) + sum(each.cache_bytes for each in drafts.values())
        drafters |= drafts
    cache_bytes = GIGABYTE
    if memory_bytes:
        cache_bytes = (memory_bytes - fixed) // len(models)
        needed = fixed + sum(
            model.config.context * model.config.cache_bytes_per_token(model.dtype.itemsize)
            for model in ready.values()
        )
        if memory_bytes < needed:
            raise UserError(
                f"--memory: {memory_bytes / GIGABYTE:.2f} GB has no room for "
                f"{', '.join(models)} with one conversation each",
                f"give it {needed / GIGABYTE + 0.005:.2f} or more, or serve fewer models",
            )
    return [
        ServedModel(
            name,
            found.tokenizer,
            Scheduler(
                ready[name],
                found.tokenizer,
                cache_bytes=cache_bytes,
                rows=streams,
                drafter=drafters.get(name),
            ),
            int(time.time()),
            sizes[name],
            cache_bytes,
            advised_sampling(found.source),
            found.source.name,
        )
        for name, found in models.items()
    ]


def _memory_of(model: InferenceDecoder) -> int:
    """Of weights; the float32 ones stay, for embeddings and norms are read from them."""
    return 4 * model.config.parameters + model.weight_bytes
