"""Instructions that models reply to, and their replies, kept as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_jsonl, sha256_file
from lmsmith.core.progress import Progress
from lmsmith.corpus.messages import validate_prompt
from lmsmith.evaluation.methods.writing import Writer
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.rows import ItemLog, Row
from lmsmith.evaluation.tasks.data import draw_items
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.prompts import Message, encode_prompt

AT_ONCE = 8
"""Prompts between two savings."""


@dataclass(frozen=True)
class Instruction:
    """Messages, the last of them the user's."""

    id: str
    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """For people and judges: the words of one message, or all messages with their roles."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{each['role']}: {each['content']}" for each in self.messages)


class ReplyRow(Row, kw_only=True):
    text: str


@dataclass(frozen=True)
class Replies:
    """A model's replies, one an instruction.

    Attributes:
        spec: how they were drawn.
        seed: of the drawing.
        fingerprint: of the model, the instructions' file and how they were drawn.
    """

    model: str
    texts: tuple[str, ...]
    spec: AnswerSpec
    seed: int
    fingerprint: str

    @property
    def empty(self) -> int:
        """How many say nothing."""
        return sum(not text for text in self.texts)

    def as_dict(self) -> dict[str, object]:
        """For ``--json`` and results.json."""
        sampled = self.spec.search == "sample"
        return {
            "model": self.model,
            "search": self.spec.search,
            "temperature": self.spec.temperature if sampled else 0.0,
            "top_p": self.spec.top_p if sampled else 1.0,
            "seed": self.seed,
            "max_new_tokens": self.spec.max_new_tokens,
            "empty": self.empty,
        }


def read_instructions(file: Path, limit: int | None = None, seed: int = 0) -> list[Instruction]:
    """Instructions of JSONL: ``prompt`` or ``instruction`` (a text or messages), or ``messages``.

    A last message of the assistant's is left out; Alpaca's ``input`` stands below its instruction.

    Args:
        limit: only so many, drawn by ``seed``; all if None.

    Raises:
        UserError: a row has none of them, or no conversation that ends with a user's message; or
            there are no rows.
    """
    found: list[Instruction] = []
    for number, row in read_jsonl(file):
        keys = (key for key in ("prompt", "instruction", "messages") if row.get(key) is not None)
        asked = row.get(key := next(keys, ""))
        below = row.get("input")
        if key == "instruction" and isinstance(asked, str) and isinstance(below, str):
            asked = "\n\n".join(text for text in (asked, below) if text.strip())
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        where = f"{file}, line {number}"
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            fix = 'a row is {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}'
            raise UserError(f"{where}: no instruction", fix)
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages or not messages[-1]["content"].strip():
            raise UserError(f"{where}: nothing is asked", "end it with a user's message")
        kept = [{"role": each["role"], "content": each["content"]} for each in messages]
        found.append(Instruction(str(len(found)), tuple(validate_prompt(kept, where))))
    if not found:
        raise UserError(f"{file}: no instructions", "give one or more")
    return draw_items(found, limit, seed)


def _is_message(value: object) -> bool:
    keys = ("role", "content")
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)


def reply_spec(subject: EvaluatedModel, tokens: int, *, greedy: bool = False) -> AnswerSpec:
    """How a model replies: drawn as ``lmsmith chat`` draws, or the likeliest token each time."""
    if greedy:
        return AnswerSpec(max_new_tokens=tokens, stop=())
    advised = subject.sampling
    drawn = AnswerSpec(max_new_tokens=tokens, stop=(), search="sample")
    return replace(drawn, temperature=advised.temperature, top_p=advised.top_p)


def write_replies(
    subject: EvaluatedModel,
    instructions: Sequence[Instruction],
    file: Path,
    folder: Path,
    spec: AnswerSpec,
    seed: int,
    progress: Progress,
) -> Replies:
    """A model's replies, by its chat template; those that are written already are read.

    Args:
        file: the file of the instructions.
        folder: of ``replies.jsonl``.
    """
    of = fingerprint([subject.fingerprint, sha256_file(file), vars(spec), seed])
    log: ItemLog[ReplyRow] = ItemLog(folder / "replies.jsonl", {"fingerprint": of}, ReplyRow)
    writer = Writer(subject, seed)

    def reply(part: Sequence[Instruction]) -> list[ReplyRow]:
        prompts = [encode_prompt(subject.tokenizer, list(each.messages)).tokens for each in part]
        texts, _ = writer.write(prompts, [int(each.id) for each in part], spec)
        return [ReplyRow(id=i.id, text=t[0].strip()) for i, t in zip(part, texts, strict=True)]

    log.fill(instructions, reply, AT_ONCE, "replies", "replies", progress)
    texts_now = tuple(log.rows[each.id].text for each in instructions)
    return Replies(subject.name, texts_now, spec, seed, of)
