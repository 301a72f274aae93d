"""Answers of versions to many prompts at once, for the queue, which asks for one prompt's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.versions import Version
from lmsmith.core.files import fingerprint
from lmsmith.feedback.sample import SampledPrompt, Writer, writer_of
from lmsmith.generation.engine import Engine, answer
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.requests import Request
from lmsmith.generation.settings import SamplingSettings
from lmsmith.prompts import encode_prompt, room_for_reply
from lmsmith.runs.stage_folder import derive_seed
from lmsmith.training.machine import ResolvedMachine

ROWS = 64
"""Answers that are written at once."""


def writer_ahead(
    version: Version,
    prompts: Sequence[SampledPrompt],
    known: Collection[str],
    count: int,
    seed: int,
    machine: ResolvedMachine,
    settings: SamplingSettings,
) -> Writer:
    """A writer that has answered the prompts already, as `fill_queue` with this seed asks it.

    Args:
        known: fingerprints of prompts that need no answer any more.
        count: of answers to each prompt.
    """
    read = read_model(version.path)
    alone = writer_of(read, machine, settings)
    context, tokenizer = read.decoder.config.context, read.tokenizer
    limit = context - room_for_reply(context, settings.max_new_tokens)
    keys, requests = [], []
    for each in prompts:
        name = fingerprint(each.messages)
        if name in known:
            continue
        drawn = derive_seed(seed, name, version.word, 0)
        wanted = replace(settings, samples=count, seed=drawn, stop_tokens=tokenizer.stop_tokens)
        tokens = encode_prompt(tokenizer, each.messages, limit).tokens
        keys.append((name, drawn))
        requests.append(Request(tokens, wanted, is_message=True))
    engine = Engine(InferenceDecoder(read.decoder, machine), tokenizer=tokenizer, rows=ROWS)
    found = answer(engine, requests) if requests else []
    written = dict(zip(keys, ([each.text.strip() for each in row] for row in found), strict=True))

    def write(prompt: Sequence[dict[str, str]], count: int, seed: int) -> list[str]:
        texts = written.pop((fingerprint(prompt), seed), None)
        return alone(prompt, count, seed) if texts is None else texts

    return write
