"""Who asks: the server's owner, or somebody who was let in by name."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import Scope

from lmsmith.feedback.names import OWNER
from lmsmith.feedback.store import Store

_KEY = "lmsmith.visitor"

_SALT: ContextVar[str] = ContextVar("lmsmith.salt", default="")
"""Of the request that is answered. What the engine is asked takes it from here, whichever route
asks: none can forget it."""


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
    _SALT.set(visitor.id)


def salt() -> str:
    """Whose reading of a prompt may be used again for the request that is answered.

    People who were let in by name have each their own; whoever has the server's token, or everybody
    where there is none, is one and the same.
    """
    return _SALT.get()


def visitor_of(request: Request) -> Visitor:
    """Who asks."""
    found = request.scope[_KEY]
    assert isinstance(found, Visitor)
    return found
