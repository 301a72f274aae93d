"""``lmsmith generate``: the continuation of a text, with its tokens' log-probabilities."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lmsmith.cli.output import print_json
from lmsmith.core.recipe import MachineConfig

if TYPE_CHECKING:
    from lmsmith.library import LanguageModel

ALTERNATIVES = 5


def generate(
    model: str,
    prompt: str,
    max_tokens: int = 128,
    temperature: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    top_p: Annotated[float | None, tyro.conf.arg(metavar="P")] = None,
    seed: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    json: bool = False,
) -> int:
    """Continue a text, and print what comes after it as it is written.

    Args:
        model: A run, a model folder, a Hugging Face folder, a GGUF file or a registered name.
        prompt: The beginning; may be empty.
        max_tokens: Most tokens to write.
        temperature: 0 takes the likeliest token every time. As the model's makers advise if not
            given, or 0.8.
        top_p: Only the likeliest tokens of this total probability may come; 1 means all. As the
            makers advise if not given, or 0.95.
        seed: Of all chance; a fresh one if not given.
        json: Print text, tokens and log-probabilities (of each token and the five likeliest in
            its place, natural logarithms, before temperature and top-p) as one JSON object.
    """
    from lmsmith.library import load
    from lmsmith.training.machine import prepare_process

    prepare_process(MachineConfig())
    seed = secrets.randbelow(2**31) if seed is None else seed
    language_model = load(model)
    settings = language_model.settings(max_tokens, temperature, 0, top_p, seed)
    tokens = language_model.text_tokens(prompt)
    if json:
        print_json(_whole(language_model, prompt, tokens, settings) | {"seed": seed})
        return 0
    for piece in language_model.write(tokens, settings):
        print(piece, end="", flush=True)
    print(flush=True)
    return 0


def _whole(model: LanguageModel, prompt: str, tokens: list[int], settings: Any) -> dict[str, Any]:
    """Everything about a continuation."""
    written = list(model.write_tokens(tokens, settings))
    ended = bool(written) and written[-1] in settings.stop_tokens
    tokenizer = model.tokenizer

    def named(token: int, log_prob: float) -> dict[str, Any]:
        text = tokenizer.decode([token], special=True)
        return {"id": token, "text": text, "log_probability": log_prob}

    choices = model.token_choices(tokens, written, ALTERNATIVES)
    return {
        "model": str(model.folder),
        "prompt": prompt,
        "prompt_tokens": tokens,
        "text": tokenizer.decode(written[:-1] if ended else written),
        "finish": "stop" if ended else "length",
        "tokens": [
            named(choice.token, choice.log_prob)
            | {"alternatives": [named(*pair) for pair in choice.alternatives]}
            for choice in choices
        ],
    }
