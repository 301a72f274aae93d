"""Tokens and sessions of people, and the labelling queue."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KINDS = "kind in ('demonstration', 'rating', 'ranking')"


def upgrade() -> None:
    op.add_column(
        "people", sa.Column("token_hash", sa.String(64), nullable=False, server_default="")
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(32), primary_key=True),
        _of("person_id", "people", sa.String(32)),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        _time("expires"),
        _time("created"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("kind", sa.String(20), nullable=False),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("prompt", "responses", "models")),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("gold", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("origin", sa.String(64), nullable=True, unique=True),
        _of("message_id", "messages", sa.Integer(), nullable=True),
        _time("created"),
        sa.CheckConstraint(_KINDS, "known_kind"),
        sa.CheckConstraint("overlap >= 1", "some_overlap"),
    )
    op.create_table(
        "assignments",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of("task_id", "tasks", sa.Integer()),
        _of("person_id", "people", sa.String(32)),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("shown", sa.JSON(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        _time("lease"),
        _time("started"),
        _time("finished", nullable=True),
        sa.UniqueConstraint("task_id", "person_id"),
        sa.CheckConstraint("state in ('open', 'done', 'skipped')", "known_state"),
    )
    op.create_table(
        "guidelines",
        sa.Column("kind", sa.String(20), primary_key=True),
        sa.Column("content", sa.String(), nullable=False),
        _time("updated"),
        sa.CheckConstraint(_KINDS, "known_kind"),
    )
    for table, columns in (
        ("sessions", ["person_id"]),
        ("tasks", ["kind"]),
        ("tasks", ["message_id"]),
        ("assignments", ["task_id"]),
        ("assignments", ["person_id", "state"]),
    ):
        op.create_index(f"ix_{table}_{'_'.join(columns)}", table, columns)


def _time(name: str, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _of(name: str, table: str, kind: Any, nullable: bool = False) -> sa.Column[Any]:
    reference = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, kind, reference, nullable=nullable)
