"""Tokens, the nodes that used them, and the nodes that are refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of trust."""
    op.create_table(
        "token",
        *_key("id"),
        *_texts("secret_hash", "cluster", "nodes"),
        sa.Column("replaces", sa.Boolean, nullable=False),
        sa.Column("uses_left", sa.Integer, nullable=False),
        *_moments("created_unix_ms", "expires_unix_ms"),
        sa.Column("revoked_unix_ms", sa.BigInteger),
        *_texts("by"),
    )
    op.create_table(
        "enrolled",
        *_key("cluster", "node"),
        *_texts("token", "key_hash", "serial"),
        *_moments("enrolled_unix_ms", "expires_unix_ms"),
    )
    op.create_table(
        "denied",
        *_key("cluster", "node"),
        *_moments("denied_unix_ms"),
        sa.Column("issued_before_unix_ms", sa.BigInteger),
        *_texts("by", "why"),
    )


def _key(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, primary_key=True) for name in names]


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _moments(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in names]
