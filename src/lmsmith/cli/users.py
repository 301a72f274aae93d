"""``lmsmith users``: who may log in to a server, and as what."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from lmsmith.cli.feedback import opened
from lmsmith.cli.output import print_json

_Database = Annotated[str, tyro.conf.arg(metavar="FILE")]


def add(
    name: str,
    role: Literal["admin", "labeler", "user"] = "user",
    database: _Database = "",
    json: bool = False,
) -> int:
    """Let somebody in, and print their token, which is shown this once.

    As soon as there is one user, the server answers nobody without a token. The token is the API
    key of clients, and what the page asks for.

    Args:
        name: Of 1 to 200 characters.
        role: A user talks to models; a labeler judges answers too; an admin also sees the
            statistics.
        database: A file, made if it is missing, or a URL such as postgresql://host/name; the
            server's if it is left out.
        json: Print name, role and token as one JSON object.
    """
    with opened(database, new=True) as store:
        from lmsmith.feedback.people import People

        token = People(store).add(name, role)
    _show_token(name, token, json, role=role)
    return 0


def token(name: str, database: _Database = "", json: bool = False) -> int:
    """Give somebody a new token; the one before ends, with all that was logged in by it.

    Args:
        name: Of the user.
        database: A file, or a URL such as postgresql://host/name; the server's if it is left out.
        json: Print name and token as one JSON object.
    """
    with opened(database) as store:
        from lmsmith.feedback.people import People

        made = People(store).renew(name)
    _show_token(name, made, json)
    return 0


def role(
    name: str,
    role: Literal["admin", "labeler", "user"],
    database: _Database = "",
    json: bool = False,
) -> int:
    """Give somebody another role; browsers they are logged in from ask for their token again.

    Args:
        name: Of the user.
        role: A user talks to models; a labeler judges answers too; an admin also sees the
            statistics.
        database: A file, or a URL such as postgresql://host/name; the server's if it is left out.
        json: Print name and role as one JSON object.
    """
    with opened(database) as store:
        from lmsmith.feedback.people import People

        People(store).change(name, role)
    if json:
        print_json({"name": name, "role": role})
    else:
        print(f"{name} is {role} now")
    return 0


def list_users(database: _Database = "", json: bool = False) -> int:
    """List who there is.

    Args:
        database: A file, or a URL such as postgresql://host/name; the server's if it is left out.
        json: Print them as one JSON object.
    """
    with opened(database) as store:
        from lmsmith.feedback.people import People

        people = People(store).all()
    if json:
        print_json({
            "users": [
                {"name": each.name, "role": each.role, "may_log_in": bool(each.token_hash)}
                for each in people
            ]
        })  # fmt: skip
        return 0
    width = max((len(each.name) for each in people), default=0)
    for each in people:
        print(f"{each.name:<{width}}  {each.role}{'' if each.token_hash else ', cannot log in'}")
    return 0


def remove(name: str, database: _Database = "", json: bool = False) -> int:
    """Delete somebody and all that is theirs: conversations, judgements, what is in the queue.

    It is gone from later exports too; files of earlier ones are yours to delete.

    Args:
        name: Of the user.
        database: A file, or a URL such as postgresql://host/name; the server's if it is left out.
        json: Print the name as a JSON object.
    """
    with opened(database) as store:
        from lmsmith.feedback.people import People

        People(store).remove(name)
    if json:
        print_json({"deleted": name})
    else:
        print(f"{name} and all that was theirs is deleted")
    return 0


def _show_token(name: str, made: str, json: bool, **more: object) -> None:
    if json:
        print_json({"name": name, **more, "token": made})
    else:
        print(f"{name}'s token, which is shown this once: {made}")
