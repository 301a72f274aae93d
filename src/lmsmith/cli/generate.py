"""``lmsmith generate``: the continuation of a text, with its tokens' log-probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmsmith.cli.output import print_json
from lmsmith.core.recipe import MachineConfig
from lmsmith.core.terminal import visible
from lmsmith.options import Weights

if TYPE_CHECKING:
    from lmsmith.generation.requests import TokenLogProb
    from lmsmith.generation.settings import SamplingSettings
    from lmsmith.library import LanguageModel


def generate(
    model: str,
    prompt: str,
    *,
    max_tokens: int = 128,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    json: bool = False,
    draft: str = "",
    alternatives: int = 5,
    prompt_log_probabilities: bool = False,
    weights: Weights = "file",
) -> None:
    """Continue a text, and print what comes after it as it is written.

    Args:
        prompt: The beginning; may be empty.
        max_tokens: Most tokens to write.
        seed: Of all chance; a fresh one if not given.
        json: Print text, tokens and log-probabilities (natural logarithms, before temperature and
            top-p) as one JSON object.
        alternatives: How many of the likeliest tokens the JSON object has in each token's place.
        prompt_log_probabilities: Let the JSON object have those of the prompt's tokens too.
        weights: As the file has them (a quantised GGUF file at its own bits), expanded to the
            precision (model), or rounded to int8.
    """
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.library import load

    prepare_reading(MachineConfig())
    seed = secrets.randbelow(2**31) if seed is None else seed
    language_model = load(model, draft=draft, weights=weights)
    settings = language_model.settings(max_tokens, temperature, 0, top_p, seed)
    tokens = language_model.text_tokens(prompt)
    if json:
        settings = replace(
            settings,
            log_probs=True,
            top_log_probs=alternatives,
            prompt_log_probs=prompt_log_probabilities,
        )
        print_json(_whole(language_model, prompt, tokens, settings) | {"seed": seed})
        return
    for piece in language_model.write(tokens, settings):
        print(visible(piece), end="", flush=True)
    print(flush=True)


def _whole(
    model: LanguageModel, prompt: str, tokens: list[int], settings: SamplingSettings
) -> dict[str, Any]:
    """Everything about a continuation."""
    reply = model.whole_reply(tokens, settings)

    def named(token: int, log_prob: float) -> dict[str, Any]:
        text = model.tokenizer.decode([token], special=True)
        return {"id": token, "text": text, "log_probability": log_prob}

    def explained(found: Iterable[TokenLogProb]) -> list[dict[str, Any]]:
        return [
            named(each.token, each.log_prob) | {"alternatives": [named(*pair) for pair in each.top]}
            for each in found
        ]

    asked = {"prompt_log_probabilities": explained(reply.prompt_log_probs)}
    return {
        "model": str(model.folder),
        "precision": model.machine.precision,
        "prompt": prompt,
        "prompt_tokens": tokens,
        **(asked if settings.prompt_log_probs else {}),
        "text": reply.text,
        "finish": reply.finish,
        "tokens": explained(reply.log_probs),
    }
