"""One model against another on instructions: both reply, and a judge says whose reply is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_jsonl, sha256_file
from lmsmith.core.progress import Progress
from lmsmith.core.signals import stop_if_requested
from lmsmith.evaluation.bootstrap import Interval, bootstrap_ratio
from lmsmith.evaluation.item_log import ItemLog
from lmsmith.evaluation.judges import Judge
from lmsmith.evaluation.methods.subject import Subject
from lmsmith.evaluation.methods.writing import Writer
from lmsmith.evaluation.tasks.spec import AnswerSpec
from lmsmith.evaluation.win_rate import length_controlled_win_rate, win_rate, wins
from lmsmith.prompts import Message, encode_prompt

AT_ONCE = 8
"""Prompts between two savings."""


@dataclass(frozen=True)
class Instruction:
    """What is asked: messages, the last of them the user's."""

    id: str
    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """For people and judges: the words of one message, or all messages with their roles."""
        if len(self.messages) == 1:
            return self.messages[0]["content"]
        return "\n".join(f"{each['role']}: {each['content']}" for each in self.messages)


@dataclass(frozen=True)
class Versus:
    """Model a against model b.

    Attributes:
        judge: who judged.
        rate: share of instructions on which a's reply is better, ties counting ½.
        at_equal_length: the same, were the replies equally long.
        position_bias: P(the reply shown first) − ½, of a judge that reads both orders.
        consistent: share of instructions on which both orders prefer the same reply.
        ties: share of instructions without a winner.
        rows: of the instructions.
    """

    judge: str
    rate: Interval
    at_equal_length: Interval
    position_bias: Interval | None
    consistent: float | None
    ties: float
    rows: Sequence[Mapping[str, Any]]

    def as_dict(self) -> dict[str, object]:
        """For ``--json`` and results.json."""
        bias = self.position_bias
        return {
            "judge": self.judge,
            "instructions": len(self.rows),
            "win_rate": vars(self.rate),
            "win_rate_length_controlled": vars(self.at_equal_length),
            "position_bias": None if bias is None else vars(bias),
            "consistent": self.consistent,
            "ties": self.ties,
        }


def read_instructions(file: Path, limit: int | None = None) -> list[Instruction]:
    """Instructions of JSONL: ``prompt`` or ``instruction`` (a text or messages), or ``messages``.

    A last message of the assistant's is left out: it is what is to be written.

    Raises:
        UserError: a row has none of them, or there are no rows.
    """
    found: list[Instruction] = []
    for number, row in read_jsonl(file):
        if limit is not None and len(found) == limit:
            break
        asked = row.get("prompt", row.get("instruction", row.get("messages")))
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        where = f"{file}, line {number}"
        if not isinstance(messages, list) or not all(_is_message(each) for each in messages):
            raise UserError(
                f"{where}: no instruction",
                'a row is {"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}',
            )
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if not messages or not messages[-1]["content"].strip():
            raise UserError(f"{where}: nothing is asked", "end it with a user's message")
        kept = [{"role": each["role"], "content": each["content"]} for each in messages]
        found.append(Instruction(str(len(found)), tuple(kept)))
    if not found:
        raise UserError(f"{file}: no instructions", "give one or more")
    return found


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(k), str) for k in ("role", "content")
    )


def write_replies(
    subject: Subject,
    instructions: Sequence[Instruction],
    file: Path,
    folder: Path,
    spec: AnswerSpec,
    seed: int,
    progress: Progress,
) -> list[str]:
    """A model's replies, by its chat template; those that are written already are read."""
    parts = [subject.fingerprint, sha256_file(file), vars(spec), seed]
    log = ItemLog(folder / "replies.jsonl", {"fingerprint": fingerprint(parts)})
    left = [each for each in instructions if each.id not in log.rows]
    writer = Writer(subject, spec, seed)
    progress.begin("replies", len(instructions), "replies", len(instructions) - len(left))
    for start in range(0, len(left), AT_ONCE):
        batch = left[start : start + AT_ONCE]
        prompts = [encode_prompt(subject.tokenizer, list(each.messages)).tokens for each in batch]
        ids = [int(each.id) for each in batch]
        texts, _ = writer.write(prompts, ids, spec.max_new_tokens, spec.stop, 1)
        log.append(
            [{"id": i.id, "text": t[0].strip()} for i, t in zip(batch, texts, strict=True)], 0.0
        )
        progress.update(len(log.rows))
        stop_if_requested()
    progress.end()
    return [str(log.rows[each.id]["text"]) for each in instructions]


def judge_replies(
    judge: Judge,
    instructions: Sequence[Instruction],
    replies_a: Sequence[str],
    replies_b: Sequence[str],
    seed: int = 0,
) -> Versus:
    """What a judge makes of two models' replies."""
    triples = list(zip(instructions, replies_a, replies_b, strict=True))
    judged = judge.compare([(list(each.messages), a, b) for each, a, b in triples])
    scores_a = [each["score_a"] for each in judged]
    scores_b = [each["score_b"] for each in judged]
    won = wins(scores_a, scores_b).tolist()
    rows = [
        {"id": each.id, "prompt": each.text, "a": a, "b": b, "won": w, **scores}
        for (each, a, b), w, scores in zip(triples, won, judged, strict=True)
    ]
    lengths_a, lengths_b = ([len(t) + 1 for t in texts] for texts in (replies_a, replies_b))
    bias, consistent = None, None
    both = [each for each in judged if "a_shown_first" in each]
    if both:
        firsts = [(each["a_shown_first"] + 1 - each["a_shown_second"]) / 2 for each in both]
        bias = bootstrap_ratio([first - 0.5 for first in firsts], seed=seed)
        same = [(each["a_shown_first"] > 0.5) == (each["a_shown_second"] > 0.5) for each in both]
        consistent = sum(same) / len(same)
    return Versus(
        judge.name,
        win_rate(scores_a, scores_b, seed=seed),
        length_controlled_win_rate(scores_a, scores_b, lengths_a, lengths_b, seed=seed),
        bias,
        consistent,
        won.count(0.5) / len(won),
        rows,
    )
