"""Answers of models for labelers to judge: prompts are taken, answered, and put into the queue."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.remote import RemoteModel, is_remote, split_remote
from lmsmith.catalogue.resolve import resolve, weights_sum
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_jsonl
from lmsmith.core.progress import Progress
from lmsmith.corpus.cleaning import same_text
from lmsmith.corpus.messages import validate_messages, validate_prompt
from lmsmith.feedback.answers import check_responses
from lmsmith.feedback.paths import Paths
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.store import NotThere, Store
from lmsmith.generation.engine import Engine, answer
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.requests import Request
from lmsmith.generation.settings import SamplingSettings
from lmsmith.prompts import encode_prompt, room_for_reply
from lmsmith.runs.signals import stop_if_requested
from lmsmith.runs.stage_folder import derive_seed
from lmsmith.training.machine import ResolvedMachine

ROUNDS = 3
"""How often empty and repeated answers are drawn again."""

Writer = Callable[[Sequence[dict[str, str]], int, int], list[str]]
"""(prompt, number of answers, seed) → answers; unfinished and empty ones may be missing."""


@dataclass(frozen=True)
class SampledPrompt:
    """A prompt, and the id of the logged message that it ends with, if it is one."""

    messages: list[dict[str, str]]
    message: int | None = None


def prompts_of(path: Path) -> Iterator[SampledPrompt]:
    """The prompts of a JSONL file.

    Rows have ``prompt`` (messages, or a text), or ``messages``, whose last answer is left out.

    Raises:
        UserError: naming the file and the line.
    """
    for line, row in read_jsonl(path):
        where = f"{path}, line {line}"
        if "prompt" in row:
            prompt = validate_prompt(row["prompt"], where)
            if not prompt[-1]["content"].strip():
                raise UserError(f"{where}: an empty prompt", "write a text, or remove the row")
            yield SampledPrompt(prompt)
        elif "messages" in row:
            messages = validate_messages(row["messages"], where)
            while messages and messages[-1]["role"] != "user":
                messages.pop()
            if messages:
                yield SampledPrompt(messages)
        else:
            raise UserError(f"{where}: no 'prompt' and no 'messages'")


def logged_prompts(store: Store) -> list[SampledPrompt]:
    """Each message to a model, with all that came before it."""
    with store.session() as session:
        messages = Paths(session)
    return [
        SampledPrompt(prompt, number)
        for number, each in messages.items()
        if each.role == "user" and (prompt := messages.prompt(number)) is not None
    ]


def drawn(prompts: Sequence[SampledPrompt], count: int, seed: int) -> list[SampledPrompt]:
    """At most ``count`` of them, drawn at random, no text twice."""
    first = {fingerprint(each.messages): each for each in reversed(prompts)}
    by_name = sorted(first)
    chosen = random.Random(derive_seed(seed, "prompts")).sample(by_name, min(count, len(by_name)))
    return [first[name] for name in chosen]


def writers_of(
    words: Sequence[str], machine: ResolvedMachine, settings: SamplingSettings
) -> dict[str, Writer]:
    """`writer_of` each model of this machine or behind another server, by name.

    Models of one folder name, such as ``a/model`` and ``b/model``, have their whole paths as names.

    Raises:
        UserError: there is no such model, a server does not answer, or one is named twice.
    """
    local, remote = split_remote(words)
    short = {word: Path(resolve(word).name).name or word for word in local}
    count = Counter([*short.values(), *remote])
    names = [short[word] if count[short[word]] == 1 else word for word in local]
    for name, times in Counter([*names, *remote]).items():
        if times > 1:
            raise UserError(f"{name}: named {times} times", "name each model once")
    models: dict[str, ReadModel | RemoteModel] = dict(
        zip(names, map(read_model, local), strict=True)
    )
    return {name: writer_of(each, machine, settings) for name, each in (models | remote).items()}


def writer_of(
    model: ReadModel | RemoteModel, machine: ResolvedMachine, settings: SamplingSettings
) -> Writer:
    """A model that answers prompts; the answers to one are drawn together."""
    decoder: RemoteModel | InferenceDecoder
    if isinstance(model, RemoteModel):
        decoder, context = model, model.context
    else:
        decoder = InferenceDecoder(model.decoder, machine)
        context = model.decoder.config.context
    limit = context - room_for_reply(context, settings.max_new_tokens)
    settings = replace(settings, stop_tokens=model.tokenizer.stop_tokens)

    def write(prompt: Sequence[dict[str, str]], count: int, seed: int) -> list[str]:
        tokens = encode_prompt(model.tokenizer, prompt, limit).tokens
        request = Request(tokens, replace(settings, samples=count, seed=seed), is_message=True)
        engine = Engine(decoder, tokenizer=model.tokenizer, rows=count)
        return [reply.text.strip() for reply in answer(engine, [request])[0]]

    return write


def answers_drawn_by(words: Sequence[str], settings: SamplingSettings) -> list[object]:
    """What decides the answers of models besides the seed: settings, and the models' weights."""
    weights = [weights_sum(resolve(word)) for word in words if not is_remote(word)]
    sampling = (settings.max_new_tokens, settings.temperature, settings.top_p)
    return [*sampling, list(words), weights]


def fill_queue(
    queue: Queue,
    prompts: Sequence[SampledPrompt],
    writers: dict[str, Writer],
    *,
    kind: str,
    answers: int,
    overlap: int,
    seed: int,
    progress: Progress,
    drawn_by: object = None,
) -> dict[str, int]:
    """Put a task for each prompt into the queue; after an interrupted run, the rest.

    Args:
        writers: models by name; each writes an equal part of the answers, the first ones one more
            where they do not divide.
        kind: of the tasks.
        answers: to each prompt: none for a demonstration, one for a rating, 2 to 9 for a ranking.
        overlap: how many labelers are to do each task.
        drawn_by: what else decides the answers, as JSON: sampling settings, the models' weights.
            A task is known if all of it is the same.

    Returns:
        ``tasks`` made, ``known`` from an earlier run, ``dropped`` for want of different answers, or
        because the logged message was deleted meanwhile.

    Raises:
        UserError: the numbers do not fit the kind.
    """
    check_responses(kind, [""] * answers)
    if answers and not writers:
        raise UserError(f"a {kind} needs a model's answers", "name a model")
    counts: Counter[str] = Counter(tasks=0, known=0, dropped=0)
    settings = [list(writers), answers, seed, *([] if drawn_by is None else [drawn_by])]
    progress.begin("prompts", len(prompts), "prompts")
    for number, each in enumerate(prompts, start=1):
        stop_if_requested()
        origin = fingerprint(["sample", kind, each.messages, *settings])
        if queue.has(origin):
            counts["known"] += 1
        elif len(found := collect_answers(each.messages, writers, answers, seed)) < answers:
            counts["dropped"] += 1
        else:
            try:
                queue.add(
                    kind,
                    each.messages,
                    [text for _, text in found],
                    models=[name for name, _ in found],
                    overlap=overlap,
                    origin=origin,
                    message=each.message,
                )
                counts["tasks"] += 1
            except NotThere:  # somebody deleted it while models answered
                counts["dropped"] += 1
        progress.update(number)
    progress.end()
    return dict(counts)


def collect_answers(
    prompt: Sequence[dict[str, str]], writers: Mapping[str, Writer], answers: int, seed: int
) -> list[tuple[str, str]]:
    """Different answers with their models, in a random order; fewer if they write too few."""
    found: list[tuple[str, str]] = []
    name = fingerprint(prompt)
    for place, (model, write) in enumerate(writers.items()):
        wanted = answers // len(writers) + (place < answers % len(writers))
        for round_number in range(ROUNDS):
            if not wanted:
                break
            for text in write(prompt, wanted, derive_seed(seed, name, model, round_number)):
                if text.strip() and not any(same_text(text, other) for _, other in found):
                    found.append((model, text))
                    wanted -= 1
    random.Random(derive_seed(seed, "order", name)).shuffle(found)
    return found
