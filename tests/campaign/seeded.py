"""Eight bugs, each a small change of the product, that the campaigns and tests must find.

`apply` puts one into this process; as a plugin of pytest (``-p campaign.seeded``) it puts the one in that
``CAMPAIGN_BUG`` names. `test_seeded` names what finds each.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from flopwatch_agent.spool_disk import DiskStore
from flopwatch_agent.spool_record import Change, State
from flopwatch_collector import incident, listen
from flopwatch_collector.control.outbox import OutboxRow
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.ingest_commit import Commits
from flopwatch_collector.paging.webhook import Webhook
from flopwatch_collector.rules.verdict import Condition
from flopwatch_collector.telemetry.schema import TABLES
from flopwatch_collector.trust import service

Patch = Callable[[Any, str, Any], None]


def _ack_before_commit(patch: Patch) -> None:
    put = Commits.put

    async def eager(self: Commits, stream: Any, arrival: Any) -> None:
        await put(self, stream, arrival)
        stream.through_seq = max(stream.through_seq, stream.received_seq or 0)
        self._acknowledge(stream, arrival.interval_rows)

    patch(Commits, "put", eager)


def _watermark_apart(patch: Patch) -> None:
    commit = DiskStore.commit

    def twice(self: DiskStore, change: Change) -> None:
        before = self.committed or self.state() or State(spool_id=change.state.spool_id)
        commit(self, replace(change, state=before))
        commit(self, Change(state=change.state))

    patch(DiskStore, "commit", twice)


def _drop_before_gap(patch: Patch) -> None:
    commit = DiskStore.commit

    def twice(self: DiskStore, change: Change) -> None:
        if change.delete is not None and change.put:
            commit(self, Change(state=self.committed or change.state, delete=change.delete))
        commit(self, change)

    patch(DiskStore, "commit", twice)


def _retry_doubles(_: Patch) -> None:
    table = TABLES["interval"]
    TABLES["interval"] = replace(table, key=(*table.key, "stored_unix_ms"))


def _resolve_on_no_data(patch: Patch) -> None:
    advance = incident.advance

    def trusting(state: Any, verdict: Any, *arguments: Any, **named: Any) -> Any:
        if verdict.condition is Condition.UNKNOWN:
            verdict = replace(verdict, condition=Condition.OK, clears=True)
        return advance(state, verdict, *arguments, **named)

    patch(incident, "advance", trusting)


def _send_before_persist(patch: Patch) -> None:
    urls: list[str] = []
    init, save = Webhook.__init__, ControlStore.save

    def noted(self: Webhook, route: Any, secret: bytes) -> None:
        urls.append(route.url)
        init(self, route, secret)

    def eager(self: ControlStore, *, pages: list[OutboxRow], **more: Any) -> None:
        for page in pages:
            headers = {"Idempotency-Key": page.id}
            request = urllib.request.Request(urls[-1], page.body.encode(), headers)
            while True:
                try:
                    urllib.request.urlopen(request, timeout=5).close()
                    break
                except OSError:
                    continue
        save(self, pages=pages, **more)

    patch(Webhook, "__init__", noted)
    patch(ControlStore, "save", eager)


def _wrong_ping_key(patch: Patch) -> None:
    wrong = {
        "grpc.http2.min_ping_interval_without_data_ms": "grpc.http2.min_recv_ping_interval_without_data_ms"
    }
    options = tuple((wrong.get(name, name), value) for name, value in listen.SERVER_OPTIONS)
    patch(listen, "SERVER_OPTIONS", options)


def _san_not_checked(patch: Patch) -> None:
    patch(service, "peer_identity", lambda call: None)


BUGS: Final[dict[str, Callable[[Patch], None]]] = {
    "acknowledged before the commit": _ack_before_commit,
    "watermark outside of the transaction": _watermark_apart,
    "dropped before the gap is written": _drop_before_gap,
    "a store that doubles what is sent again": _retry_doubles,
    "resolved where there is no data": _resolve_on_no_data,
    "page sent before it is stored": _send_before_persist,
    "wrong name of the ping option": _wrong_ping_key,
    "name of the certificate not checked": _san_not_checked,
}


def apply(name: str, patch: Patch = setattr) -> None:
    """Put a bug into this process."""
    BUGS[name](patch)


def pytest_configure() -> None:
    """Put in the bug that the environment names."""
    apply(os.environ["CAMPAIGN_BUG"])
