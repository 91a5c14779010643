"""Which agents each collector hears."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of presence."""
    op.create_table(
        "presence",
        sa.Column("collector", sa.Text, primary_key=True),
        sa.Column("told_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("agents", sa.LargeBinary, nullable=False),
    )
