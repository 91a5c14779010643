"""Tables of the control store. Moments are Unix ms; ``migrations/`` makes exactly these tables."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

METADATA: Final = MetaData()

# SQLite numbers rows by itself only where the type is exactly INTEGER.
SERIAL: Final = BigInteger().with_variant(Integer(), "sqlite")


def _moment(name: str, *, nullable: bool = True) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


# One row per rule and cluster: the fields of incident.IncidentState.
INCIDENT: Final = Table(
    "incident",
    METADATA,
    Column("rule", Text, primary_key=True),
    Column("cluster", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("episode", Text, nullable=False),
    _moment("began_unix_ms"),
    _moment("pending_since_unix_ms"),
    _moment("fired_unix_ms"),
    _moment("clear_since_unix_ms"),
    _moment("standing_since_unix_ms"),
    _moment("quiet_since_unix_ms"),
    _moment("deep_since_unix_ms"),
    _moment("no_demand_since_unix_ms"),
    _moment("cause_since_unix_ms"),
    Column("cause_candidate", Text, nullable=False),
    _moment("last_eval_unix_ms", nullable=False),
    Column("lo", Double),
    Column("hi", Double),
    Column("value", Double),
    Column("coverage", Double),
    Column("line", Double),
    Column("lost_points", JSON, nullable=False),
    Column("causes", JSON, nullable=False),
    Column("leading_cause", Text, nullable=False, server_default=""),
    Column("subjects", Integer),
    Column("severity", Text, nullable=False),
    Column("paged_value", Double),
    Column("paged_causes", JSON, nullable=False),
    Column("flap_times", JSON, nullable=False),
    Column("flapping", Boolean, nullable=False),
    Column("noticed", JSON, nullable=False),
    Column("escalate_no", Integer, nullable=False),
    Column("notice_no", Integer, nullable=False),
    Column("resolved_episode", Text, nullable=False),
    _moment("resolved_unix_ms"),
    Column("resolve_repeat_no", Integer, nullable=False),
    Column("ack_by", Text),
    _moment("ack_unix_ms"),
    Column("closed_by", Text),
    _moment("closed_unix_ms"),
    Column("closed_value", Double),
    Column("said_by", Text, nullable=False, server_default=""),
    Column("version", Integer, nullable=False),
)

# Episodes that fired: what is left of an outage after it.
EPISODE: Final = Table(
    "episode",
    METADATA,
    Column("rule", Text, primary_key=True),
    Column("cluster", Text, primary_key=True),
    Column("episode", Text, primary_key=True),
    Column("simulated", Boolean, nullable=False),
    Column("severity", Text, nullable=False),
    _moment("began_unix_ms", nullable=False),
    _moment("fired_unix_ms", nullable=False),
    _moment("resolved_unix_ms"),
    Column("line", Double),
    Column("worst", Double),
    Column("lost_points", JSON, nullable=False),
    Column("causes", JSON, nullable=False),
    Index("episode_by_time", "fired_unix_ms"),
)

# Pages to send; ``id`` names a page on every try, on every collector.
OUTBOX: Final = Table(
    "outbox",
    METADATA,
    Column("seq", SERIAL, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("rule", Text, nullable=False),
    Column("cluster", Text, nullable=False),
    Column("episode", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("repeat_no", Integer, nullable=False),
    Column("dedup_key", Text, nullable=False),
    Column("body", Text, nullable=False),
    _moment("created_unix_ms", nullable=False),
    Column("attempts", Integer, nullable=False),
    _moment("next_try_unix_ms", nullable=False),
    Column("last_error", Text),
    Column("held_reason", Text),
    _moment("sent_unix_ms"),
    # Set when the row will never be sent: refused by the receiver, or silenced from end to end.
    _moment("dropped_unix_ms"),
    Column("provider_ref", Text),
    UniqueConstraint("rule", "cluster", "episode", "route", "action", "repeat_no"),
    Index("outbox_open", "sent_unix_ms", "dropped_unix_ms", "seq"),
)

# The inputs of every tick, as they were judged: replay, standing and baselines read these.
OBSERVATION: Final = Table(
    "observation",
    METADATA,
    Column("rule", Text, primary_key=True),
    Column("cluster", Text, primary_key=True),
    Column("tick_unix_ms", BigInteger, primary_key=True),
    Column("condition", Text, nullable=False),
    Column("lo", Double),
    Column("hi", Double),
    Column("value", Double),
    Column("coverage", Double),
    Column("in_service_cards", Double, nullable=False),
    Column("unseen_cards", Double, nullable=False),
    Column("leading_cause", Text, nullable=False),
    Column("inputs", JSON),
    Index("observation_by_time", "tick_unix_ms"),
)

# One row per slot that is asked for its readings of a window: asked, sent, answered or expired.
CAPTURE_REQUEST: Final = Table(
    "capture_request",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("cluster", Text, primary_key=True),
    Column("node", Text, primary_key=True),
    Column("slot", Text, primary_key=True),
    Column("job", Text, nullable=False),
    _moment("from_unix_ms", nullable=False),
    _moment("to_unix_ms", nullable=False),
    Column("readings_per_second", Integer, nullable=False),
    _moment("asked_unix_ms", nullable=False),
    Column("asked_by", Text, nullable=False),
    Column("state", Text, nullable=False),
    _moment("changed_unix_ms", nullable=False),
    Index("capture_request_open", "state", "asked_unix_ms"),
)

SILENCE: Final = Table(
    "silence",
    METADATA,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    Column("matchers", JSON, nullable=False),
    _moment("starts_unix_ms", nullable=False),
    _moment("ends_unix_ms", nullable=False),
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
    # Where it was made, if not here: ``alertmanager/ROUTE/ID``.
    Column("origin", Text, nullable=False, server_default=""),
)

# What people said of an outage, and did about it.
NOTE: Final = Table(
    "note",
    METADATA,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    Column("rule", Text, nullable=False),
    Column("cluster", Text, nullable=False),
    Column("episode", Text, nullable=False),
    _moment("at_unix_ms", nullable=False),
    Column("what", Text, nullable=False),
    Column("by", Text, nullable=False),
    Column("text", Text, nullable=False),
    Index("note_by_episode", "rule", "cluster", "episode"),
)

MAINTENANCE: Final = Table(
    "maintenance",
    METADATA,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    Column("cluster", Text, nullable=False),
    Column("nodes", Text, nullable=False),
    _moment("starts_unix_ms", nullable=False),
    _moment("ends_unix_ms", nullable=False),
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
)

# Append-only; each row's hash covers the hash before it.
AUDIT: Final = Table(
    "audit",
    METADATA,
    Column("id", SERIAL, primary_key=True, autoincrement=True),
    _moment("at_unix_ms", nullable=False),
    Column("who", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("before", JSON),
    Column("after", JSON),
    Column("hash", Text, nullable=False),
)

INVENTORY_SLOT: Final = Table(
    "inventory_slot",
    METADATA,
    Column("cluster", Text, primary_key=True),
    Column("node", Text, primary_key=True),
    Column("slot", Text, primary_key=True),
    Column("from_unix_ms", BigInteger, primary_key=True),
    _moment("to_unix_ms"),
    Column("state", Text, nullable=False),
    Column("sku", Text, nullable=False),
    Column("serial", Text, nullable=False),
    Column("device_kind", Text, nullable=False),
    Column("dtype", Text, nullable=False),
)

LEASE: Final = Table(
    "lease",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    _moment("expires_unix_ms", nullable=False),
)

# Words that let a node have its first certificate; only the hash of the secret is kept.
TOKEN: Final = Table(
    "token",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("secret_hash", Text, nullable=False),
    Column("cluster", Text, nullable=False),
    Column("nodes", Text, nullable=False),
    Column("replaces", Boolean, nullable=False),
    Column("uses_left", Integer, nullable=False),
    _moment("created_unix_ms", nullable=False),
    _moment("expires_unix_ms", nullable=False),
    _moment("revoked_unix_ms"),
    Column("by", Text, nullable=False),
)

# Nodes that have a certificate of ours, and the newest one.
ENROLLED: Final = Table(
    "enrolled",
    METADATA,
    Column("cluster", Text, primary_key=True),
    Column("node", Text, primary_key=True),
    Column("token", Text, nullable=False),
    Column("key_hash", Text, nullable=False),
    Column("serial", Text, nullable=False),
    _moment("enrolled_unix_ms", nullable=False),
    _moment("expires_unix_ms", nullable=False),
)

# Nodes that are refused: with every certificate, or with those issued before the newest enrolment.
DENIED: Final = Table(
    "denied",
    METADATA,
    Column("cluster", Text, primary_key=True),
    Column("node", Text, primary_key=True),
    _moment("denied_unix_ms", nullable=False),
    _moment("issued_before_unix_ms"),
    Column("by", Text, nullable=False),
    Column("why", Text, nullable=False),
)

# What each of several collectors hears: all of its agents, packed by `presence`.
PRESENCE: Final = Table(
    "presence",
    METADATA,
    Column("collector", Text, primary_key=True),
    _moment("told_unix_ms", nullable=False),
    Column("agents", LargeBinary, nullable=False),
)
