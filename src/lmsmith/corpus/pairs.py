"""Rows of ``chosen`` and ``rejected``: two responses to one prompt, of which people chose one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from lmsmith.core.errors import UserError
from lmsmith.corpus.fields import require_keys
from lmsmith.corpus.messages import validate_messages, validate_prompt

Ranked: TypeAlias = tuple[list[dict[str, str]], list[str], list[int]]
"""A prompt, the responses to it, and their ranks: 1 is best."""


class IrregularPair(UserError):
    """A well-formed row whose two texts are no choice between two replies to one prompt.

    Attributes:
        flaw: what is wrong, in words that follow "2 rankings".
    """

    def __init__(self, where: str, problem: str, flaw: str) -> None:
        super().__init__(f"{where}: {problem}", "fix the row or leave it out")
        self.flaw = flaw


def read_pair(row: Mapping[str, object], where: str) -> Ranked:
    """The ranking of two that a row of ``chosen`` and ``rejected`` is.

    Raises:
        IrregularPair: there is no prompt, or there are two that differ, a message is empty, both
            responses are the same, or a text does not end with the assistant's message. Published
            data has such rows.
        UserError: the row has another form.
    """
    require_keys(row, ("chosen", "rejected"), where)
    prompt, chosen, rejected = _prompt_and_responses(row, where)
    if not all(text.strip() for text in (chosen, rejected, *(m["content"] for m in prompt))):
        raise IrregularPair(where, "a message is empty", "with an empty message")
    if chosen.strip() == rejected.strip():
        problem = "'chosen' and 'rejected' are the same"
        raise IrregularPair(where, problem, "of one response twice")
    return prompt, [chosen, rejected], [1, 2]


def _prompt_and_responses(
    row: Mapping[str, object], where: str
) -> tuple[list[dict[str, str]], str, str]:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is not None:
            return validate_prompt(row["prompt"], where), chosen, rejected
        chosen, rejected = _from_transcript(chosen, where), _from_transcript(rejected, where)
    better = validate_messages(chosen, f"{where}, 'chosen'")
    worse = validate_messages(rejected, f"{where}, 'rejected'")
    if {better[-1]["role"], worse[-1]["role"]} != {"assistant"}:
        raise IrregularPair(
            where,
            "'chosen' and 'rejected' must end with the assistant's message",
            "that do not end with the assistant's message",
        )
    responses = better[-1]["content"], worse[-1]["content"]
    if len(better) == 1 and len(worse) == 1 and row.get("prompt") is not None:
        return validate_prompt(row["prompt"], where), *responses  # the messages are replies alone
    if len(better) == 1:
        raise IrregularPair(where, "there is no prompt", "without a prompt")
    if better[:-1] != worse[:-1]:
        raise IrregularPair(
            where,
            "'chosen' and 'rejected' differ before their last message",
            "whose texts differ before the last message",
        )
    return validate_prompt(better[:-1], where), *responses


def _from_transcript(text: str, where: str) -> list[dict[str, str]]:
    """Messages of ``"\\n\\nHuman: …\\n\\nAssistant: …"`` (Bai et al. 2022, hh-rlhf)."""
    names = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
    messages: list[dict[str, str]] = []
    rest = "\n\n" + text.lstrip("\n")
    while rest:
        name = next((name for name in names if rest.startswith(name)), None)
        if name is None:
            raise UserError(
                f"{where}: there is no 'prompt', and 'chosen' and 'rejected' are not conversations",
                "give 'prompt', or messages, or texts that start with 'Human:'",
            )
        rest = rest[len(name) :]
        end = min((at for name in names if (at := rest.find(name)) >= 0), default=len(rest))
        content, rest = rest[:end].strip(), rest[end:]
        if messages and messages[-1]["role"] == names[name]:
            messages[-1]["content"] = "\n".join(filter(None, (messages[-1]["content"], content)))
        else:
            messages.append({"role": names[name], "content": content})
    return messages
