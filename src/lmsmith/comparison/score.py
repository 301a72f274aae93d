"""Scores of responses by a reward model, for `lmsmith.score` and a judge that is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmsmith.catalogue.resolve import resolve
from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import validate_messages, validate_prompt
from lmsmith.models.folder import load_scalar_model, load_tokenizer
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import Message
from lmsmith.rlhf.ranking import EncodedRanking, encode_responses, score_rankings
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

Answered = tuple[Sequence[Message], Sequence[str]]
"""A prompt and responses to it."""

FORMS = '{"prompt": …, "response": "…"}, {"prompt": …, "responses": [ … ]} or {"messages": [ … ]}'


def load_reward_model(word: str | Path) -> tuple[ScalarModel, Tokenizer]:
    """The reward model of a folder; a run means its reward stage.

    Raises:
        UserError: there is none, or the model gives no rewards.
    """
    own = Path(word) / "reward" / "model"
    source = resolve(own if (own / "config.json").is_file() else word)
    if source.format != "lmsmith":
        fix = "name a folder that the reward stage wrote, such as runs/quickstart/reward"
        raise UserError(f"{word} is a language model: it has no reward head", fix)
    return load_scalar_model(source.path), load_tokenizer(source.path)


def read_answered(row: object, where: str) -> Answered:
    """A prompt and its responses from a list of messages, or from a row of `FORMS`.

    Raises:
        UserError: it has another form, or no response of the assistant's.
    """
    fields = {"messages": row} if not isinstance(row, Mapping) else row
    if "messages" in fields:
        messages = validate_messages(fields["messages"], where)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            problem = f"{where}: the last message is not a response"
            raise UserError(problem, "end it with the assistant's message")
        return messages[:-1], [messages[-1]["content"]]
    texts = fields.get("responses", [fields["response"]] if "response" in fields else None)
    if "prompt" not in fields or not isinstance(texts, list):
        raise UserError(f"{where}: no prompt with a response", f"a row is {FORMS}")
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: responses must be texts, one or more", f"a row is {FORMS}")
    return validate_prompt(fields["prompt"], where), texts


def score_responses(
    model: ScalarModel,
    tokenizer: Tokenizer,
    answered: Sequence[Answered],
    machine: ResolvedMachine,
) -> list[list[float]]:
    """The reward of each response of each row.

    A response longer than three quarters of the context loses its end, and a long conversation its
    oldest messages; equal responses of a row have equal rewards.

    Raises:
        UserError: a system message and the last one do not fit the context.
    """
    context = model.decoder.config.context
    distinct = [list(dict.fromkeys(texts)) for _, texts in answered]  # rounding breaks no tie
    rankings = []
    for (messages, _), texts in zip(answered, distinct, strict=True):
        prompt, responses = encode_responses(tokenizer, messages, texts, context)
        rankings.append(EncodedRanking(prompt, responses, [1] * len(responses)))
    scores = score_rankings(model, rankings, machine)
    return [
        [rewards[known.index(text)] for text in texts]
        for (_, texts), known, rewards in zip(answered, distinct, scores, strict=True)
    ]
