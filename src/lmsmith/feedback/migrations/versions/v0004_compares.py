"""Whether a person is shown two versions of a model side by side; all are until they opt out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "people", sa.Column("compares", sa.Boolean(), nullable=False, server_default=sa.true())
    )
