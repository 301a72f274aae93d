"""Judgements of answers: thumbs, better answers, comparisons, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import validate_messages
from lmsmith.feedback.conversations import conversation_of, message_of
from lmsmith.feedback.database import Database
from lmsmith.feedback.tables import (
    VERDICTS,
    BetterAnswer,
    Comparison,
    Message,
    RankedAnswers,
    Rating,
)

Judgement = TypeVar("Judgement", Rating, BetterAnswer, Comparison)


class Judgements(Database):
    """The store's judgements."""

    def rate(
        self,
        person: str,
        message: int,
        value: int,
        reasons: Sequence[str] = (),
        comment: str = "",
    ) -> Rating:
        """Thumbs up or down; a second one by the same person takes the first one's place."""
        if value not in (-1, 1):
            raise UserError(f"value = {value}: 1 is thumbs up, -1 thumbs down")
        with self.session.begin() as session:
            _answer(session, person, message)
            made = Rating(
                message_id=message,
                person_id=person,
                value=value,
                reasons=list(reasons),
                comment=comment,
            )
            return _in_place(session, made, Rating.message_id == message)

    def improve(self, person: str, message: int, content: str) -> BetterAnswer:
        """Say what would have been better than an answer."""
        if not content.strip():
            raise UserError("a better answer must not be empty")
        with self.session.begin() as session:
            _answer(session, person, message)
            made = BetterAnswer(message_id=message, person_id=person, content=content)
            return _in_place(session, made, BetterAnswer.message_id == message)

    def compare(self, person: str, left: int, right: int, verdict: str) -> Comparison:
        """Say which of two answers to one message is better.

        Raises:
            UserError: they are not two answers to one message, or there is no such verdict.
        """
        if verdict not in VERDICTS:
            raise UserError(f"verdict {verdict!r}: expected one of {', '.join(VERDICTS)}")
        with self.session.begin() as session:
            first, second = _answer(session, person, left), _answer(session, person, right)
            if left == right or first.parent_id != second.parent_id:
                raise UserError(f"{left} and {right} are not two answers to one message")
            made = Comparison(left_id=left, right_id=right, person_id=person, verdict=verdict)
            same = Comparison.left_id == left, Comparison.right_id == right
            return _in_place(session, made, *same)

    def rank(
        self,
        person: str,
        prompt: Sequence[dict[str, str]],
        responses: Sequence[str],
        ranks: Sequence[int],
        models: Sequence[str] = (),
        shown: Sequence[int] = (),
    ) -> RankedAnswers:
        """Say in what order answers to a prompt are good, 1 for the best; ties are equal numbers.

        Raises:
            UserError: it is no ranking of two or more answers to a user's message.
        """
        made = new_ranking(person, prompt, responses, ranks, models, shown)
        with self.session.begin() as session:
            session.add(made)
            return made

    def judgements(self, person: str, conversation: str) -> dict[int, dict[str, Any]]:
        """A person's judgements of the answers in a conversation, by message."""
        found: dict[int, dict[str, Any]] = {}
        with self.session() as session:
            conversation_of(session, person, conversation)
            inside = select(Message.id).where(Message.conversation_id == conversation)
            for rating in session.scalars(
                select(Rating).where(Rating.person_id == person, Rating.message_id.in_(inside))
            ):
                found.setdefault(rating.message_id, {})["rating"] = {
                    "value": rating.value,
                    "reasons": rating.reasons,
                    "comment": rating.comment,
                }
            for better in session.scalars(
                select(BetterAnswer).where(
                    BetterAnswer.person_id == person, BetterAnswer.message_id.in_(inside)
                )
            ):
                found.setdefault(better.message_id, {})["better"] = better.content
            for compared in session.scalars(
                select(Comparison).where(
                    Comparison.person_id == person, Comparison.left_id.in_(inside)
                )
            ):
                verdict = {"left": compared.left_id, "right": compared.right_id}
                for message in verdict.values():
                    compared_with = found.setdefault(message, {}).setdefault("comparisons", [])
                    compared_with.append({**verdict, "verdict": compared.verdict})
        return found


def new_ranking(
    person: str,
    prompt: Sequence[dict[str, str]],
    responses: Sequence[str],
    ranks: Sequence[int],
    models: Sequence[str] = (),
    shown: Sequence[int] = (),
    origin: str | None = None,
) -> RankedAnswers:
    """A ranking that is in no database yet.

    Raises:
        UserError: as `Judgements.rank`.
    """
    messages = validate_messages([dict(message) for message in prompt], "the prompt")
    if messages[-1]["role"] != "user":
        raise UserError("the prompt must end with the user's message")
    if len(responses) < 2 or len(ranks) != len(responses) or min(ranks) < 1:
        raise UserError(f"{len(responses)} answers, ranks {list(ranks)}: one from 1 for each")
    return RankedAnswers(
        person_id=person,
        prompt=messages,
        responses=list(responses),
        ranks=list(ranks),
        models=list(models),
        shown=list(shown),
        origin=origin,
    )


def _answer(session: Session, person: str, message: int) -> Message:
    found = message_of(session, person, message)
    if found.role != "assistant":
        raise UserError(f"message {message} is not an answer of a model")
    return found


def _in_place(session: Session, made: Judgement, *same: Any) -> Judgement:
    """Add a judgement in the place of this person's earlier one of the same."""
    table = type(made)
    session.execute(delete(table).where(table.person_id == made.person_id, *same))
    session.add(made)
    return made
