"""What people do about outages: resolve by hand, note; silences made elsewhere; what says it already."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("incident", sa.Column("closed_by", sa.Text))
    op.add_column("incident", sa.Column("closed_unix_ms", sa.BigInteger))
    op.add_column("incident", sa.Column("closed_value", sa.Double))
    said_by = sa.Column("said_by", sa.Text, nullable=False, server_default="")
    op.add_column("incident", said_by)
    op.add_column("silence", sa.Column("origin", sa.Text, nullable=False, server_default=""))
    serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "note",
        sa.Column("id", serial, primary_key=True, autoincrement=True),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("cluster", sa.Text, nullable=False),
        sa.Column("episode", sa.Text, nullable=False),
        sa.Column("at_unix_ms", sa.BigInteger, nullable=False),
        sa.Column("what", sa.Text, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("note_by_episode", "note", ["rule", "cluster", "episode"])
