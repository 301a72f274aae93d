"""What tests need of a store and no command does."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select

from lmsmith.feedback.store import Store, new_ranking
from lmsmith.feedback.tables import (
    BetterAnswer,
    Comparison,
    Conversation,
    Message,
    Person,
    RankedAnswers,
    Rating,
)


def rank(
    store: Store,
    person: str,
    prompt: Sequence[dict[str, str]],
    responses: Sequence[str],
    ranks: Sequence[int],
) -> None:
    """Add a ranking, as an import does."""
    with store.session.begin() as session:
        session.add(new_ranking(person, prompt, responses, ranks))


def row_counts(store: Store) -> dict[str, int]:
    """The number of rows of each table."""
    tables = (Person, Conversation, Message, Rating, BetterAnswer, Comparison, RankedAnswers)
    with store.session() as session:
        return {
            table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
            for table in tables
        }
