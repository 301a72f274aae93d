"""Names of people: however one is typed or stored in a file, it is one person.

Two spellings that look alike are one name: composed and decomposed accents, full-width and plain
letters, spaces around and between words, and characters that show nothing (zero-width ones, marks
of direction, variation selectors). Capitals count. Control characters are refused.
"""

from __future__ import annotations

import re
import unicodedata

from sqlalchemy import select
from sqlalchemy.orm import Session

from lmsmith.core.errors import UserError
from lmsmith.core.text import encodable
from lmsmith.feedback.tables import Person

OWNER = "owner"
"""The server's owner: everybody, until the first user is added."""

IMPORTER = "import"
"""Rows of a file that name nobody. It is no person: what is split by people is not by it."""

LONGEST = 200

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)
"""Characters that show nothing and are of no category of their own; the rest are of Cf."""


def person_name(given: str) -> str:
    """The one form of a name.

    Raises:
        UserError: it is empty, too long, or has control characters.
    """
    name = plain_name(given)
    odd = next((each for each in name if unicodedata.category(each) in ("Cc", "Cs")), None)
    if odd is not None:
        raise UserError(
            f"{given!r}: the character U+{ord(odd):04X} cannot stand in a name",
            "give a name of letters, digits, signs and spaces",
        )
    if not name or len(name) > LONGEST:
        shown = repr(given) if len(given) <= LONGEST else f"{given[:40]!r} … ({len(name):,} long)"
        raise UserError(f"{shown}: expected a name of 1 to {LONGEST} visible characters")
    return name


class Names:
    """The people of a database, by name.

    Databases of earlier versions have names in several forms: a name that is there as it is given
    comes before one that is the same by `person_name`, and an older person before a younger one.

    Args:
        session: reads them.
    """

    def __init__(self, session: Session) -> None:
        query = select(Person.name, Person.id).order_by(Person.created.desc(), Person.id)
        people = [(name, person) for name, person in session.execute(query)]
        self._exact = dict(people)
        self._plain = {plain_name(name): person for name, person in people}

    def find(self, name: str) -> str | None:
        """The id of the person of that name.

        Raises:
            UserError: nobody can be called so.
        """
        return self._exact.get(name) or self._plain.get(person_name(name))

    def add(self, person: Person) -> None:
        """Note a new person."""
        self._exact[person.name] = self._plain[person.name] = person.id


def find_person(session: Session, name: str) -> Person | None:
    """The person of that name, in whichever form it is typed.

    Raises:
        UserError: nobody can be called so.
    """
    found = session.scalar(select(Person).where(Person.name == encodable(name)))
    if found is None and (known := Names(session).find(name)) is not None:
        found = session.get_one(Person, known)
    return found


def plain_name(name: str) -> str:
    """As `person_name`, but of names that are refused, too: earlier versions took them."""
    text = unicodedata.normalize("NFKC", name)
    text = "".join(each for each in text if unicodedata.category(each) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).split())
