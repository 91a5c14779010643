"""The first tables.

A revision is history: later changes to ``schema.py`` get their own revision and never edit this one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    _incidents()
    _outbox()
    _observations()
    _people()
    _inventory()


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _moment(name: str, *, nullable: bool = True) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _serial(name: str) -> sa.Column[int]:
    return sa.Column(name, SERIAL, primary_key=True, autoincrement=True)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON, nullable=False)


def _key(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, primary_key=True) for name in names]


def _doubles(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double) for name in names]


def _incidents() -> None:
    op.create_table(
        "incident",
        *_key("rule", "cluster"),
        _text("state"),
        sa.Column("simulated", sa.Boolean, nullable=False),
        _text("episode"),
        _moment("began_unix_ms"),
        _moment("pending_since_unix_ms"),
        _moment("fired_unix_ms"),
        _moment("clear_since_unix_ms"),
        _moment("standing_since_unix_ms"),
        _moment("quiet_since_unix_ms"),
        _moment("deep_since_unix_ms"),
        _moment("no_demand_since_unix_ms"),
        _moment("cause_since_unix_ms"),
        _text("cause_candidate"),
        _moment("last_eval_unix_ms", nullable=False),
        *_doubles("lo", "hi", "value", "coverage", "line"),
        _json("lost_points"),
        _json("causes"),
        _text("severity"),
        *_doubles("paged_value"),
        _json("paged_causes"),
        _json("flap_times"),
        sa.Column("flapping", sa.Boolean, nullable=False),
        _json("noticed"),
        _count("escalate_no"),
        _count("notice_no"),
        _text("resolved_episode"),
        _moment("resolved_unix_ms"),
        _count("resolve_repeat_no"),
        sa.Column("ack_by", sa.Text),
        _moment("ack_unix_ms"),
        _count("version"),
    )
    op.create_table(
        "episode",
        *_key("rule", "cluster", "episode"),
        sa.Column("simulated", sa.Boolean, nullable=False),
        _text("severity"),
        _moment("began_unix_ms", nullable=False),
        _moment("fired_unix_ms", nullable=False),
        _moment("resolved_unix_ms"),
        *_doubles("line", "worst"),
        _json("lost_points"),
        _json("causes"),
    )
    op.create_index("episode_by_time", "episode", ["fired_unix_ms"])


def _outbox() -> None:
    op.create_table(
        "outbox",
        _serial("seq"),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        *map(_text, ("rule", "cluster", "episode", "route", "action")),
        _count("repeat_no"),
        _text("dedup_key"),
        _text("body"),
        _moment("created_unix_ms", nullable=False),
        _count("attempts"),
        _moment("next_try_unix_ms", nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("held_reason", sa.Text),
        _moment("sent_unix_ms"),
        _moment("dropped_unix_ms"),
        sa.Column("provider_ref", sa.Text),
        sa.UniqueConstraint("rule", "cluster", "episode", "route", "action", "repeat_no"),
    )
    op.create_index("outbox_open", "outbox", ["sent_unix_ms", "dropped_unix_ms", "seq"])


def _observations() -> None:
    op.create_table(
        "observation",
        *_key("rule", "cluster"),
        sa.Column("tick_unix_ms", sa.BigInteger, primary_key=True),
        _text("condition"),
        *_doubles("lo", "hi", "value", "coverage"),
        sa.Column("in_service_cards", sa.Double, nullable=False),
        sa.Column("unseen_cards", sa.Double, nullable=False),
        _text("leading_cause"),
    )
    op.create_index("observation_by_time", "observation", ["tick_unix_ms"])


def _people() -> None:
    window = ("starts_unix_ms", "ends_unix_ms")
    op.create_table(
        "silence",
        _serial("id"),
        _json("matchers"),
        *(_moment(name, nullable=False) for name in window),
        *map(_text, ("by", "why")),
    )
    op.create_table(
        "maintenance",
        _serial("id"),
        *map(_text, ("cluster", "nodes")),
        *(_moment(name, nullable=False) for name in window),
        *map(_text, ("by", "why")),
    )
    op.create_table(
        "audit",
        _serial("id"),
        _moment("at_unix_ms", nullable=False),
        *map(_text, ("who", "origin", "what", "subject")),
        sa.Column("before", sa.JSON),
        sa.Column("after", sa.JSON),
        _text("hash"),
    )


def _inventory() -> None:
    op.create_table(
        "inventory_slot",
        *_key("cluster", "node", "slot"),
        sa.Column("from_unix_ms", sa.BigInteger, primary_key=True),
        _moment("to_unix_ms"),
        *map(_text, ("state", "sku", "serial", "device_kind", "dtype")),
    )
    op.create_table(
        "lease",
        *_key("name"),
        _text("holder"),
        sa.Column("fence", sa.BigInteger, nullable=False),
        _moment("expires_unix_ms", nullable=False),
    )
