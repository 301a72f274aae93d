"""The first tables: people, conversations, messages and four kinds of judgement."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "people",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(200), nullable=False, unique=True),
        sa.Column("role", sa.String(20), nullable=False),
        _created(),
        sa.CheckConstraint("role in ('admin', 'labeler', 'user')", "known_role"),
    )
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(32), primary_key=True),
        _of("person_id", "people", sa.String(32)),
        sa.Column("title", sa.String(), nullable=False),
        _created(),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of("conversation_id", "conversations", sa.String(32)),
        _of("parent_id", "messages", sa.Integer(), nullable=True),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("finish", sa.String(20), nullable=False),
        _created(),
        sa.CheckConstraint("role in ('system', 'user', 'assistant')", "known_role"),
    )
    op.create_table(
        "ratings",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of("message_id", "messages", sa.Integer()),
        _of("person_id", "people", sa.String(32)),
        sa.Column("value", sa.Integer(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("comment", sa.String(), nullable=False),
        _created(),
        sa.UniqueConstraint("message_id", "person_id"),
        sa.CheckConstraint("value in (-1, 1)", "up_or_down"),
    )
    op.create_table(
        "better_answers",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of("message_id", "messages", sa.Integer()),
        _of("person_id", "people", sa.String(32)),
        sa.Column("content", sa.String(), nullable=False),
        _created(),
        sa.UniqueConstraint("message_id", "person_id"),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of("left_id", "messages", sa.Integer()),
        _of("right_id", "messages", sa.Integer()),
        _of("person_id", "people", sa.String(32)),
        sa.Column("verdict", sa.String(20), nullable=False),
        _created(),
        sa.UniqueConstraint("left_id", "right_id", "person_id"),
        sa.CheckConstraint("verdict in ('left', 'right', 'tie', 'both_bad')", "known_verdict"),
    )
    op.create_table(
        "rankings",
        sa.Column("id", sa.Integer(), primary_key=True),
        _of("person_id", "people", sa.String(32)),
        *(
            sa.Column(name, sa.JSON(), nullable=False)
            for name in ("prompt", "responses", "ranks", "models", "shown")
        ),
        _created(),
    )
    for table, columns in {
        "conversations": ["person_id"],
        "messages": ["conversation_id", "parent_id"],
        "ratings": ["message_id", "person_id"],
        "better_answers": ["message_id", "person_id"],
        "comparisons": ["left_id", "right_id", "person_id"],
        "rankings": ["person_id"],
    }.items():
        for column in columns:
            op.create_index(f"ix_{table}_{column}", table, [column])


def _created() -> sa.Column[Any]:
    return sa.Column("created", sa.DateTime(timezone=True), nullable=False)


def _of(name: str, table: str, kind: Any, nullable: bool = False) -> sa.Column[Any]:
    reference = sa.ForeignKey(f"{table}.id", ondelete="CASCADE")
    return sa.Column(name, kind, reference, nullable=nullable)
