"""Whence rankings and conversations came, so that a file that is imported twice adds nothing."""

from __future__ import annotations

from collections import Counter

import sqlalchemy as sa
from alembic import op

from lmsmith.core.files import fingerprint

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for table in ("conversations", "rankings"):
        op.add_column(table, sa.Column("origin", sa.String(64), nullable=True))
        op.create_index(f"ix_{table}_origin", table, ["origin"], unique=True)
    _name_rankings()


def _name_rankings() -> None:
    """Until now all of them were imported; they get what importing them today would give."""
    rankings = sa.table(
        "rankings",
        sa.column("id", sa.Integer()),
        sa.column("person_id", sa.String()),
        *(sa.column(name, sa.JSON()) for name in ("prompt", "responses", "ranks")),
        sa.column("origin", sa.String()),
    )
    connection, seen = op.get_bind(), Counter[str]()
    for row in connection.execute(sa.select(rankings).order_by(rankings.c.id)).all():
        name = fingerprint(["ranking", row.person_id, row.prompt, row.responses, row.ranks])
        seen[name] += 1
        named = rankings.update().where(rankings.c.id == row.id)
        connection.execute(named.values(origin=f"{name}.{seen[name]}"))
