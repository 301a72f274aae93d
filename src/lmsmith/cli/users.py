"""``lmsmith users``: who may log in to a server, and as what."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from lmsmith.cli.output import print_json
from lmsmith.core.errors import needs_extra
from lmsmith.core.terminal import in_one_line

if TYPE_CHECKING:
    from lmsmith.feedback.people import People

Role = Literal["admin", "labeler", "user"]


def add(name: str, *, role: Role = "user", database: str = "", json: bool = False) -> None:
    """Let somebody in, and print their token, which is shown this once.

    As soon as there is one user, the server answers nobody without a token, its owner included:
    with the first user comes a token for "owner", an admin, who has the conversations until now.
    A token is the API key of clients, and what the page asks for.

    Args:
        name: 1 to 200 visible characters. Spaces around it, full-width letters and characters that
            show nothing make no other name.
        database: A file, made if it is missing, or a URL such as postgresql://host/name; the
            server's if it is left out.
        json: Print name, role and token as one JSON object, with "owner_token" where the owner
            was given one.
    """
    with _people(database, new=True) as people:
        made = people.add(name, role)
        _show_token(people, name, made, json)


def token(name: str, *, database: str = "", json: bool = False) -> None:
    """Give somebody a new token; the one before ends, with all that was logged in by it.

    Of a database in which nobody has a token yet, the owner gets one too, as by `users add`.
    """
    with _people(database) as people:
        made = people.renew(name)
        _show_token(people, name, made, json)


def role(name: str, role: Role, *, database: str = "", json: bool = False) -> None:
    """Give somebody another role; browsers they are logged in from ask for their token again."""
    with _people(database) as people:
        people.change(name, role)
        person = people.named(name)
        if json:
            print_json({"name": person.name, "role": role})
        else:
            print(f"{in_one_line(person.name)} is {role} now")
            _say_who_is_left(people)


def list_users(*, database: str = "", json: bool = False) -> None:
    """List who there is."""
    with _people(database) as people:
        found = people.all()
    if json:
        print_json({
            "users": [
                {"name": each.name, "role": each.role, "may_log_in": bool(each.token_hash)}
                for each in found
            ]
        })  # fmt: skip
        return
    if not found:
        print("there are no users; everybody who can reach the server is its owner")
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        state = "" if each.token_hash else ", cannot log in"
        print(f"{in_one_line(each.name):<{width}}  {each.role}{state}")


def remove(name: str, *, database: str = "", json: bool = False) -> None:
    """Delete somebody and all that is theirs: conversations, judgements, what is in the queue.

    It is gone from later exports and versions too; files of earlier exports are yours to delete.
    Versions that were made with their words, or from such a version, are named first.
    """
    from lmsmith.catalogue.versions import made_with

    with _people(database) as people:
        person = people.named(name)
        made = [each.word for each in made_with(person.id)]
        if made and not json:
            shown = in_one_line(person.name)
            print(f"versions made with words of {shown}: {', '.join(made)}; they stay")
            models = sorted({word.partition("@")[0] for word in made})
            for model in models:
                print(
                    f"to make one without: lmsmith improve {model} --exclude {person.id} --restart"
                )
        people.remove(name)
        if json:
            print_json({"deleted": person.name, "versions": made})
        else:
            print(f"{in_one_line(person.name)} and all that was theirs is deleted")
            _say_who_is_left(people)


@contextlib.contextmanager
def _people(database: str, *, new: bool = False) -> Iterator[People]:
    with needs_extra("serve"):
        from lmsmith.feedback.people import People
        from lmsmith.feedback.store import open_store
    with open_store(database, new=new) as store:
        yield People(store)


def _show_token(people: People, name: str, made: str, json: bool) -> None:
    """A token just made, with the owner's where they would be locked out now."""
    person, owner_token = people.named(name), people.add_owner()
    if json:
        owner = {"owner_token": owner_token} if owner_token else {}
        print_json({"name": person.name, "role": person.role, "token": made, **owner})
        return
    print(f"{in_one_line(person.name)}'s token, which is shown this once: {made}")
    if owner_token:
        print(f"owner's token, which is shown this once: {owner_token}")
    print("The page asks for a token from now on; clients send it as their API key.")
    if owner_token:
        print("You sign in as owner, an admin, and find all conversations until now.")
    elif person.role == "admin" and people.owner_is_out():
        option = people.store.option
        print("Conversations until now are those of the server's owner; a token for them:")
        print(f"  lmsmith users add owner --role admin{option}")


def _say_who_is_left(people: People) -> None:
    """Warn if nobody is left who can administer, or sign in at all."""
    if not people.anybody():
        print("Nobody can sign in now. A running server stays closed; a new start opens it.")
    elif not people.has_admin():
        option = people.store.option
        print(f"No admin can sign in now; make one: lmsmith users add owner --role admin{option}")
