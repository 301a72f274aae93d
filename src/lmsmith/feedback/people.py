"""Who may log in: names, roles, tokens and sessions.

A token and a session's cookie are ``ID.SECRET``. The row is found by its id; of the secret, which
is 256 bits of chance, the database has a SHA-256 only, and these are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shlex
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, select

from lmsmith.core.errors import UserError
from lmsmith.core.text import encodable
from lmsmith.feedback.names import IMPORTER, OWNER, find_person, plain_name
from lmsmith.feedback.store import NotThere, Store, check_role
from lmsmith.feedback.tables import Person, Session, now, utc

SESSION_DAYS = 30


class People:
    """The people of a database.

    Args:
        store: it.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, name: str, role: str) -> str:
        """Let somebody in.

        Returns:
            Their token, which is nowhere kept and is shown this once.

        Raises:
            UserError: somebody of this name can log in already, or name or role are none.
        """
        _check_reserved(name, role)
        for reserved in (OWNER, IMPORTER):
            if plain_name(name).casefold() == reserved != plain_name(name):
                raise UserError(
                    f"{name!r} reads as {reserved!r}, a name of lmsmith's own",
                    "choose another name",
                )
        person = self.store.person(name, role)
        if person.token_hash:
            again = f"lmsmith users token {shlex.quote(person.name)}{self.store.option}"
            raise UserError(f"there is a user {person.name!r} already", f"a new token: {again}")
        return self._renewed(person, role)

    def add_owner(self) -> str:
        """Let the server's owner in, so that they are not locked out of what is theirs.

        Returns:
            Their new token; empty where an admin can log in.
        """
        if self.has_admin():
            return ""
        return self._renewed(self.store.person(OWNER, "admin"), "admin")

    def owner_is_out(self) -> bool:
        """Whether there is an owner who has talked to models, and has no token."""
        return self._has(Person.name == OWNER, Person.token_hash == "")

    def renew(self, name: str) -> str:
        """A new token; the one before, and every session opened by it, end.

        Raises:
            NotThere: there is nobody of this name.
        """
        person = self.named(name)
        return self._renewed(person, person.role)

    def _renewed(self, found: Person, role: str) -> str:
        with self.store.session.begin() as session:
            person = session.get_one(Person, found.id)
            secret = secrets.token_urlsafe(32)
            person.role, person.token_hash = role, _hash(secret)
            session.execute(delete(Session).where(Session.person_id == person.id))
            return f"{person.id}.{secret}"

    def change(self, name: str, role: str) -> None:
        """Give somebody another role; they sign in again, with the token they have.

        Raises:
            NotThere: there is nobody of this name.
            UserError: there is no such role.
        """
        _check_reserved(name, role)
        check_role(role)
        with self.store.session.begin() as session:
            person = session.get_one(Person, self.named(name).id)
            person.role = role
            session.execute(delete(Session).where(Session.person_id == person.id))

    def remove(self, name: str) -> None:
        """Delete somebody and all that is theirs.

        Raises:
            NotThere: there is nobody of this name.
        """
        self.store.delete_person(self.named(name).id)

    def all(self) -> list[Person]:
        """Everybody, by name."""
        with self.store.session() as session:
            return list(session.scalars(select(Person).order_by(Person.name)))

    def anybody(self) -> bool:
        """Whether there is somebody who can log in."""
        return self._has(Person.token_hash != "")

    def has_admin(self) -> bool:
        """Whether there is an admin who can log in."""
        return self._has(Person.token_hash != "", Person.role == "admin")

    def _has(self, *conditions: ColumnElement[bool]) -> bool:
        with self.store.session() as session:
            return session.scalar(select(Person.id).where(*conditions).limit(1)) is not None

    def by_token(self, token: str) -> Person | None:
        """Whose token it is."""
        name, _, secret = encodable(token).partition(".")
        with self.store.session() as session:
            person = session.get(Person, name)
        given = hmac.compare_digest(_hash(secret), person.token_hash if person else _hash(""))
        return person if given and person is not None and person.token_hash else None

    def open_session(self, person: str, server_token: str = "") -> str:
        """Log somebody in.

        Args:
            person: whom.
            server_token: by which they are let in, if it was not by their own; the session is
                open to those alone who name it.

        Returns:
            What the cookie holds.
        """
        secret = secrets.token_urlsafe(32)
        with self.store.session.begin() as session:
            session.execute(delete(Session).where(Session.expires < now()))
            made = Session(
                person_id=person,
                secret_hash=_session_hash(secret, server_token),
                expires=now() + timedelta(days=SESSION_DAYS),
            )
            session.add(made)
            session.flush()
            return f"{made.id}.{secret}"

    def by_session(self, cookie: str, server_token: str = "") -> Person | None:
        """Who is logged in by this cookie, and was let in by this token of the server."""
        name, _, secret = encodable(cookie).partition(".")
        with self.store.session() as session:
            found = session.get(Session, name)
            hashed = _session_hash(secret, server_token)
            given = hmac.compare_digest(hashed, found.secret_hash if found else _hash(""))
            if not given or found is None or utc(found.expires) < now():
                return None
            return session.get(Person, found.person_id)

    def close_session(self, cookie: str, server_token: str = "") -> None:
        """Log out: the cookie opens nothing from now on."""
        tokens = {"", server_token}
        if all(self.by_session(cookie, token) is None for token in tokens):
            return
        with self.store.session.begin() as session:
            session.execute(delete(Session).where(Session.id == cookie.partition(".")[0]))

    def named(self, name: str) -> Person:
        """The person of that name.

        Raises:
            NotThere: there is nobody of this name.
        """
        with self.store.session() as session:
            found = find_person(session, name)
        if found is None:
            problem = f"there is no user {name!r}"
            raise NotThere(problem, f"see them all: lmsmith users ls{self.store.option}")
        return found


def _check_reserved(name: str, role: str) -> None:
    """Raises UserError for names that mean something else."""
    if plain_name(name) == IMPORTER:
        raise UserError(f"{IMPORTER!r} stands for rows that name nobody", "choose another name")
    if plain_name(name) == OWNER and role != "admin":
        problem = f"{OWNER!r} is the server's owner, who is an admin"
        raise UserError(problem, "give it the role admin, or choose another name")


def _session_hash(secret: str, server_token: str) -> str:
    return _hash(f"{secret}\0{server_token}" if server_token else secret)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", errors="replace")).hexdigest()
