"""Pages of outages that begin and end, from the decision to a receiver; and the oracle of what it got.

Outages alternate in each of `CLUSTERS`: a decision is the incident's new state and its page in one
transaction, as the watch makes it. What was decided is written to a ledger outside of the system; what
was sent is with the receiver, which folds what comes twice under one key, and fails now and then: with
500, or by taking the page and hanging up without an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from flopwatch_collector.control.outbox import OutboxRow, row_id
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.paging.outbox import Sender
from flopwatch_collector.paging.settings import RouteConfig
from flopwatch_collector.paging.webhook import Webhook

CLUSTERS: Final = tuple(f"c{number}" for number in range(6))
ROUTE: Final = "desk"
PACE_SECONDS: Final = 0.3
FINISH_SECONDS_MAX: Final = 60.0
RULE: Final = "allocation"


class Pager:
    """Decides and sends; what it knows is in the control store."""

    def __init__(self, home: Path, url: str) -> None:
        self._control = ControlStore.open(f"sqlite:///{home / 'control.db'}")
        route = RouteConfig(name=ROUTE, url=url, secret_env="S", timeout_s=5.0)
        self._sender = Sender(self._control, {ROUTE: Webhook(route, b"secret")}, clock=_now_ms)
        self._ledger = os.open(home / "pages", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def run(self) -> None:
        """Decide and send until cancelled."""
        sending = asyncio.create_task(self._sender.run())
        chance = random.Random()
        try:
            while not sending.done():
                self._decide(chance.choice(CLUSTERS))
                self._sender.wake()
                await asyncio.sleep(chance.uniform(0.0, 2 * PACE_SECONDS))
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def finish(self, running: asyncio.Task[None]) -> list[dict[str, Any]]:
        """Send what waits; return every page that was ever decided.

        Raises:
            TimeoutError: pages stay unsent.
        """
        running.cancel()
        await asyncio.wait({running})
        async with asyncio.timeout(FINISH_SECONDS_MAX):
            while self._control.outbox_open():
                await self._sender.once()
                await asyncio.sleep(0.1)
        pages = self._control.outbox_all()
        await self._sender.close()
        self._control.close()
        return [{"id": p.id, "outage": p.dedup_key, "action": p.action} for p in pages]

    def _decide(self, cluster: str) -> None:
        stored = {state.cluster: state for state in self._control.incidents()}
        state = stored.get(cluster) or IncidentState(rule=RULE, cluster=cluster)
        now = _now_ms()
        if state.state is State.FIRING:
            action, after = "resolve", replace(state, state=State.RESOLVED, resolved_unix_ms=now)
        else:
            action = "trigger"
            after = replace(
                state,
                state=State.FIRING,
                episode=str(now),
                began_unix_ms=now,
                fired_unix_ms=now,
            )
        page = decided(cluster, after.episode, action, now)
        self._control.save(states=[after], pages=[page])
        os.write(self._ledger, f"{page.id}\n".encode())


def decided(cluster: str, episode: str, action: str, now_unix_ms: int) -> OutboxRow:
    """Return the page of a decision."""
    outage = f"{RULE}/{cluster}/{episode}"
    return OutboxRow(
        id=row_id(outage, ROUTE, action, 0),
        rule=RULE,
        cluster=cluster,
        episode=episode,
        route=ROUTE,
        action=action,
        repeat_no=0,
        dedup_key=outage,
        body=json.dumps({"outage": outage, "action": action}),
        created_unix_ms=now_unix_ms,
        next_try_unix_ms=now_unix_ms,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Receiver:
    """Attributes: taken: (key, body) of each page, in order; url: where it listens."""

    chance: random.Random
    url: str = ""
    taken: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, key: str, body: str) -> int:
        """Return what to answer; 0: nothing."""
        luck = self.chance.random()
        if luck < 0.1:
            return 500
        self.taken.append((key, body))
        return 0 if luck < 0.2 else 202


@contextmanager
def receiving(chance: random.Random) -> Iterator[Receiver]:
    """A receiver on loopback for the length of a block."""
    receiver = Receiver(chance)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            body = self.rfile.read(size)
            # Half a page, of a sender that was killed while it spoke, is none.
            whole = len(body) == size
            status = receiver.answer(self.headers["Idempotency-Key"], body.decode()) if whole else 0
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # who asked was killed

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/pages"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def judge(
    decided: Sequence[dict[str, Any]],
    promised: Iterable[str],
    taken: Sequence[tuple[str, str]],
) -> list[str]:
    """Return what is wrong with the pages.

    Args:
        decided: every page of the control store, in order, none of them unsent.
        promised: ids that the ledger knows to be decided.
        taken: what the receiver got, in order.
    """
    problems = []
    ids = [page["id"] for page in decided]
    if forgotten := set(promised) - set(ids):
        problems.append(f"{len(forgotten)} pages were decided and forgotten")
    keys = [key for key, _ in taken]
    if lost := set(ids) - set(keys):
        problems.append(f"{len(lost)} pages never came")
    if invented := set(keys) - set(ids):
        problems.append(f"{len(invented)} pages came that nobody decided")
    if len(set(taken)) > len(set(keys)):
        problems.append("one key came with two pages")
    wanted: dict[str, list[str]] = {}
    for page in decided:
        wanted.setdefault(page["outage"], []).append(page["action"])
    if doubled := [o for o, actions in wanted.items() if len(set(actions)) < len(actions)]:
        problems.append(f"outage {doubled[0]} was told twice under two keys")
    told: dict[str, list[str]] = {}
    for _, body in dict.fromkeys(taken):
        page = json.loads(body)
        told.setdefault(page["outage"], []).append(page["action"])
    if wrong := [o for o, actions in told.items() if actions != wanted.get(o, actions)]:
        problems.append(f"outage {wrong[0]} was told as {told[wrong[0]]}")
    return problems
