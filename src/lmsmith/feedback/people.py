"""People: their names and roles, the tokens and sessions by which they log in.

However a name is typed or stored in a file, it is one person. Two spellings that look alike are one
name: composed and decomposed accents, full-width and plain letters, spaces around and between
words, and characters that show nothing (zero-width ones, marks of direction, variation selectors).
Capitals count. Control characters are refused.

A token and a session's cookie are ``ID.SECRET``. The row is found by its id; of the secret, which
is 256 random bits, the database has a SHA-256 only, and these are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import shlex
import unicodedata
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, orm, select
from sqlalchemy.exc import IntegrityError

from lmsmith.core.errors import UserError
from lmsmith.core.text import encodable
from lmsmith.feedback.database import Database, NotThere
from lmsmith.feedback.deletion import (
    conversations_of,
    delete_conversation,
    delete_person_row,
    revoke,
)
from lmsmith.feedback.tables import ROLES, Person, Session, now, utc

OWNER = "owner"
"""The server's owner: everybody, until the first user is added."""

IMPORTER = "import"
"""Rows of a file that name nobody. It is no person: what is split by people is not by it."""

LONGEST_NAME = 200
SESSION_DAYS = 30

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
"""Characters that show nothing and are of no category of their own; the rest are of Cf."""


class PersonStore(Database):
    """The store's people."""

    def person(self, name: str, role: str = "user") -> Person:
        """The person of that name, who is added if new."""
        _check_role(role)
        try:
            with self.session.begin() as session:
                found = find_person(session, name)
                if found is None:
                    found = Person(name=person_name(name), role=role)
                    session.add(found)
                return found
        except IntegrityError:  # another process has added them meanwhile
            with self.session() as session:
                named = select(Person).where(Person.name == person_name(name))
                return session.scalars(named).one()

    def delete_person(self, person: str) -> None:
        """Delete a person and all that is theirs, also from later exports.

        Their token and sessions end first, in a transaction of their own: they are locked out even
        if the rest fails. Then each conversation goes, and the person last, so that a call that
        failed can be repeated.
        """
        with self.session.begin() as session:
            revoke(session, person)
        with self.session() as session:
            conversations = conversations_of(session, person)
        for conversation in conversations:
            with self.session.begin() as session:
                delete_conversation(session, conversation)
        with self.session.begin() as session:
            delete_person_row(session, person)
        self.scrub()


class People:
    """The people of a database, and how they log in.

    Methods that take the name of an existing person raise `NotThere` if there is none.
    """

    def __init__(self, store: PersonStore) -> None:
        self.store = store

    def add(self, name: str, role: str) -> str:
        """Let somebody in; returns their token, which is stored nowhere.

        Raises:
            UserError: somebody of this name can log in already, or name or role are invalid.
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
        return self._new_token(person, role)

    def add_owner(self) -> str:
        """Let the server's owner in, unless an admin can log in; returns their token, or ""."""
        if self.has_admin():
            return ""
        return self._new_token(self.store.person(OWNER, "admin"), "admin")

    def owner_is_out(self) -> bool:
        """Whether there is an owner who has talked to models, and has no token."""
        return self._has(Person.name == OWNER, Person.token_hash == "")

    def renew(self, name: str) -> str:
        """A new token; the one before, and every session opened by it, end."""
        person = self.named(name)
        return self._new_token(person, person.role)

    def _new_token(self, found: Person, role: str) -> str:
        with self.store.session.begin() as session:
            person = session.get_one(Person, found.id)
            secret = secrets.token_urlsafe(32)
            person.role, person.token_hash = role, _hash(secret)
            session.execute(delete(Session).where(Session.person_id == person.id))
            return f"{person.id}.{secret}"

    def change(self, name: str, role: str) -> None:
        """Give somebody another role; they sign in again, with the token they have."""
        _check_reserved(name, role)
        _check_role(role)
        with self.store.session.begin() as session:
            person = session.get_one(Person, self.named(name).id)
            person.role = role
            session.execute(delete(Session).where(Session.person_id == person.id))

    def remove(self, name: str) -> None:
        """Delete somebody and all that is theirs."""
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
        """The person whose token it is."""
        name, _, secret = encodable(token).partition(".")
        with self.store.session() as session:
            person = session.get(Person, name)
        given = hmac.compare_digest(_hash(secret), person.token_hash if person else _hash(""))
        return person if given and person is not None and person.token_hash else None

    def open_session(self, person: str, server_token: str = "") -> str:
        """Log somebody in; returns the cookie's content.

        Args:
            person: their id.
            server_token: the token that let them in, if it was not their own; the session is valid
                only together with it.
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
        """The person logged in by this cookie and, if one is given, this token of the server."""
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
        if all(self.by_session(cookie, token) is None for token in {"", server_token}):
            return
        with self.store.session.begin() as session:
            session.execute(delete(Session).where(Session.id == cookie.partition(".")[0]))

    def named(self, name: str) -> Person:
        """The person of that name."""
        with self.store.session() as session:
            if (found := find_person(session, name)) is not None:
                return found
        fix = f"see them all: lmsmith users ls{self.store.option}"
        raise NotThere(f"there is no user {name!r}", fix)


def person_name(given: str) -> str:
    """The one form of a name; raises UserError if it is empty, too long, or has control
    characters."""
    name = plain_name(given)
    odd = next((each for each in name if unicodedata.category(each) in ("Cc", "Cs")), None)
    if odd is not None:
        raise UserError(
            f"{given!r}: the character U+{ord(odd):04X} cannot stand in a name",
            "give a name of letters, digits, signs and spaces",
        )
    if not name or len(name) > LONGEST_NAME:
        shown = repr(given)
        if len(given) > LONGEST_NAME:
            shown = f"{given[:40]!r} … ({len(name):,} long)"
        raise UserError(f"{shown}: expected a name of 1 to {LONGEST_NAME} visible characters")
    return name


def plain_name(name: str) -> str:
    """As `person_name`, but of names that are refused, too: earlier versions took them."""
    text = unicodedata.normalize("NFKC", name)
    text = "".join(each for each in text if unicodedata.category(each) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).split())


class Names:
    """The people of a database, by name.

    Databases of earlier versions have names in several forms: an exact match precedes one by
    `person_name`, and an older person a younger one.
    """

    def __init__(self, session: orm.Session) -> None:
        query = select(Person.name, Person.id).order_by(Person.created.desc(), Person.id)
        people = [(name, person) for name, person in session.execute(query)]
        self._exact = dict(people)
        self._plain = {plain_name(name): person for name, person in people}

    def find(self, name: str) -> str | None:
        """The id of the person of that name; raises UserError for an invalid name."""
        return self._exact.get(name) or self._plain.get(person_name(name))

    def add(self, person: Person) -> None:
        self._exact[person.name] = self._plain[person.name] = person.id


def find_person(session: orm.Session, name: str) -> Person | None:
    """The person of that name, in any of its forms; raises UserError for an invalid name."""
    found = session.scalar(select(Person).where(Person.name == encodable(name)))
    if found is None and (known := Names(session).find(name)) is not None:
        found = session.get_one(Person, known)
    return found


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise UserError(f"role {role!r}: expected one of {', '.join(ROLES)}")


def _check_reserved(name: str, role: str) -> None:
    if plain_name(name) == IMPORTER:
        raise UserError(f"{IMPORTER!r} stands for rows that name nobody", "choose another name")
    if plain_name(name) == OWNER and role != "admin":
        problem = f"{OWNER!r} is the server's owner, who is an admin"
        raise UserError(problem, "give it the role admin, or choose another name")


def _session_hash(secret: str, server_token: str) -> str:
    return _hash(f"{secret}\0{server_token}" if server_token else secret)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", errors="replace")).hexdigest()
