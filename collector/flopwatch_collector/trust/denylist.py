"""Nodes that are refused although their certificate is valid: in memory, read again every few seconds.

The library takes no list of revoked certificates; leaves that live for days and this list do instead. Asked
at Hello, and again while a stream lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import delete, insert, select

from flopwatch_collector.control import operations
from flopwatch_collector.control.schema import DENIED, ENROLLED
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.trust.authority import issued_unix_ms
from flopwatch_collector.trust.identity import Identity
from flopwatch_proto.errors import UsageError

CHECK_SECONDS: Final = 60.0
"""How often a stream that lasts asks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """A node that is refused.

    Attributes:
        issued_before_unix_ms: only with certificates older than that; None: with all.
    """

    cluster: str
    node: str
    denied_unix_ms: int
    issued_before_unix_ms: int | None
    by: str
    why: str


class Denylist:
    """Asked from the event loop; never waits.

    Args:
        domain: the trust domain whose nodes are let in.
    """

    def __init__(self, domain: str, now_unix_ms: Callable[[], int]) -> None:
        self._domain = domain
        self._now_unix_ms = now_unix_ms
        self._denied: Mapping[tuple[str, str], Denied] = {}

    def refusal(self, identity: Identity) -> str | None:
        """Return why a node may not speak, or speak on; None: it may."""
        name = f"{identity.node} of {identity.cluster}"
        if identity.domain != self._domain:
            return f"{name} is of trust domain {identity.domain!r}, not {self._domain!r}"
        if identity.expires_unix_ms <= self._now_unix_ms():
            return f"the certificate of {name} has expired"
        denied = self._denied.get((identity.cluster, identity.node))
        if denied is None:
            return None
        if denied.issued_before_unix_ms is None:
            return f"{name} is denied: {denied.why}"
        if identity.issued_unix_ms < denied.issued_before_unix_ms:
            return f"{name} was enrolled again: this certificate holds no more"
        return None

    def replace(self, denied: list[Denied]) -> None:
        """Take a newer list."""
        self._denied = {(d.cluster, d.node): d for d in denied}


def listed(store: ControlStore) -> list[Denied]:
    """Every node that is refused, as stored."""
    with store.reading() as connection:
        rows = connection.execute(select(DENIED).order_by(DENIED.c.cluster, DENIED.c.node))
        return [Denied(**row._asdict()) for row in rows]


def deny(store: ControlStore, denied: Denied) -> None:
    """Refuse a node from now on, whatever certificate it shows."""
    key = {"cluster": denied.cluster, "node": denied.node}
    with store.writing() as connection:
        connection.execute(delete(DENIED).filter_by(**key))
        connection.execute(insert(DENIED).values(**asdict(denied)))
    subject = f"{denied.cluster}/{denied.node}"
    after = {"why": denied.why}
    operations.record(store, denied.denied_unix_ms, denied.by, "node_denied", subject, after=after)


def admit(store: ControlStore, cluster: str, node: str, by: str, now_unix_ms: int) -> None:
    """Refuse a node no more, but for certificates older than its newest enrolment.

    Raises:
        UsageError: it is not refused.
    """
    key = {"cluster": cluster, "node": node}
    mine = select(ENROLLED.c.enrolled_unix_ms).filter_by(**key)
    with store.writing() as connection:
        denied = DENIED.c.issued_before_unix_ms.is_(None)
        done = connection.execute(delete(DENIED).filter_by(**key).where(denied))
        enrolled = connection.execute(mine).scalar()
        if done.rowcount and enrolled is not None:
            row = Denied(
                **key,
                denied_unix_ms=now_unix_ms,
                issued_before_unix_ms=issued_unix_ms(enrolled),
                by=by,
                why="enrolled again",
            )
            connection.execute(insert(DENIED).values(**asdict(row)))
    if not done.rowcount:
        raise UsageError(f"{node!r} of {cluster!r} is not denied: `flopwatch deny` shows who is")
    operations.record(store, now_unix_ms, by, "node_admitted", f"{cluster}/{node}")
