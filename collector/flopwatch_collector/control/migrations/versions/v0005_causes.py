"""What leads an outage now, how many a counting rule found, and the rest of what ticks were judged by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column(
        "incident", sa.Column("leading_cause", sa.Text, nullable=False, server_default="")
    )
    op.add_column("incident", sa.Column("subjects", sa.Integer))
    op.add_column("observation", sa.Column("inputs", sa.JSON))
