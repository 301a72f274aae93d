"""Who asks: the server's owner, or somebody who was let in by name."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from lmsmith.feedback.store import Store

OWNER = "owner"
"""Whose everything is where nobody has a name."""

_KEY = "lmsmith.visitor"


@dataclass(frozen=True)
class Visitor:
    """Whoever asks.

    Attributes:
        name: of the person.
        role: admin, labeler or user.
        id: of the person in the database; empty for the owner, who may not be in it yet.
    """

    name: str = OWNER
    role: str = "admin"
    id: str = ""

    def person(self, store: Store) -> str:
        """The person's id."""
        return self.id or store.person(self.name, self.role).id


def let_in(scope: Scope, visitor: Visitor) -> None:
    """Note who asks; said by the guard alone."""
    scope[_KEY] = visitor


def visitor_of(request: Request) -> Visitor:
    """Who asks."""
    found = request.scope[_KEY]
    assert isinstance(found, Visitor)
    return found
