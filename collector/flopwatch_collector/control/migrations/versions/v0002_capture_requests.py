"""Who was asked for readings at full resolution, and who answered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of capture requests."""
    op.create_table(
        "capture_request",
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("id", "cluster", "node", "slot")),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("from_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("to_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("readings_per_second", sa.Integer, nullable=False),
        sa.Column("asked_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("changed_unix_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("capture_request_open", "capture_request", ["state", "asked_unix_ms"])
