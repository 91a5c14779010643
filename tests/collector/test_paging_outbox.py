"""Sending, to a real receiver on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flopwatch_collector.control import operations
from flopwatch_collector.control.operations import Maintenance, Silence
from flopwatch_collector.control.outbox import OutboxRow, row_id
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import IncidentState, State
from flopwatch_collector.paging import address, channel
from flopwatch_collector.paging.outbox import FALLBACK_AFTER_MS, HELD_RECHECK_MS, Sender
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.paging.webhook import Webhook
from flopwatch_collector.rules import Observation
from flopwatch_collector.rules.settings import RulesConfig
from flopwatch_collector.watch import Watch, WatchSettings
from flopwatch_proto.errors import UsageError

NOW_MS = 1_800_000_000_000
SECRET = b"canary-secret"


@dataclass
class Receiver:
    """A receiver that checks signatures and answers from a script, then 202.

    Attributes: statuses: answers still to give; 0: take the page and hang up; -1: never answer.
    """

    statuses: list[int] = field(default_factory=list)
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""
    release: threading.Event = field(default_factory=threading.Event)

    def keys(self) -> list[str]:
        return [headers["idempotency-key"] for headers, _ in self.requests]

    def take(self, headers: dict[str, str], body: bytes) -> int:
        message = headers["x-flopwatch-timestamp"].encode() + b"." + body
        expected = "v1=" + hmac.new(SECRET, message, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(headers["x-flopwatch-signature"], expected)
        self.requests.append((headers, body))
        return self.statuses.pop(0) if self.statuses else 202


@contextlib.contextmanager
def listening() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback."""
    told = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = told.take({k.lower(): v for k, v in self.headers.items()}, body)
            if status == -1:
                told.release.wait()
            if status <= 0:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("X-Request-Id", f"r{len(told.requests)}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}/hook?key=canary-key"
    try:
        yield told
    finally:
        told.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with listening() as told:
        yield told


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlStore]:
    opened = ControlStore.open(f"sqlite:///{tmp_path}/control.db")
    yield opened
    opened.close()


class Office:
    """A sender over real webhooks with a clock that the test moves."""

    def __init__(
        self, control: ControlStore, *, timeout_s: float = 30.0, **receivers: Receiver
    ) -> None:
        self.now_ms = NOW_MS
        self.control = control
        channels = {
            name: Webhook(
                RouteConfig(name=name, url=told.url, secret_env="S", timeout_s=timeout_s), SECRET
            )
            for name, told in receivers.items()
        }
        self.sender = Sender(
            control,
            channels,
            clock=lambda: self.now_ms,
            fallback="desk" if "desk" in receivers else None,
            jitter=random.Random(1),
        )

    async def send(self, times: int = 1, every_ms: int = 61_000) -> None:
        for _ in range(times):
            await self.sender.once()
            self.now_ms += every_ms


def a_page(action: str = "trigger", **changes: object) -> OutboxRow:
    route = str(changes.get("route", "ops"))
    row = OutboxRow(
        id=row_id("fw:x", route, action, 0),
        rule="allocation",
        cluster="atlas",
        episode="2027-01-15T08:00Z",
        route="ops",
        action=action,
        repeat_no=0,
        dedup_key="fw:x",
        body=f'{{"action":"{action}"}}',
        created_unix_ms=NOW_MS,
    )
    return replace(row, **changes)  # type: ignore[arg-type]


async def test_a_page_arrives_once_signed_and_with_its_id(
    control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page()])
    office = Office(control, ops=receiver)
    await office.send(times=5)
    await office.sender.close()
    ((headers, body),) = receiver.requests
    assert body == b'{"action":"trigger"}'
    assert headers["idempotency-key"] == a_page().id
    assert headers["x-flopwatch-timestamp"] == str(NOW_MS // 1000)
    (row,) = control.outbox_all()
    assert (row.sent_unix_ms, row.attempts, row.provider_ref) == (NOW_MS, 1, "r1")


async def test_a_line_keeps_its_order_through_every_failure(
    control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page(), a_page("escalate"), a_page("resolve")])
    receiver.statuses = [500, 0, 429, 302, 401, 202, 503]
    office = Office(control, ops=receiver)
    await office.send(times=10)
    await office.sender.close()
    bodies = [body.decode().split('"')[3] for _, body in receiver.requests]
    assert bodies == ["trigger"] * 6 + ["escalate"] * 2 + ["resolve"]
    assert len(set(receiver.keys())) == 3
    assert control.outbox_open() == []
    assert office.sender.counters.failed == 6


async def test_a_failed_try_waits_between_one_and_sixty_seconds(
    control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page()])
    receiver.statuses = [500] * 20
    office = Office(control, ops=receiver)
    for _ in range(20):
        await office.sender.once()
        (row,) = control.outbox_open()
        wait_ms = row.next_try_unix_ms - office.now_ms
        assert 1_000 <= wait_ms <= min(60_000, 1_000 * 2**row.attempts)
        office.now_ms = row.next_try_unix_ms
    assert len(receiver.requests) == 20
    await office.sender.close()


async def test_an_answer_that_does_not_come_is_a_failed_try(
    control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page()])
    receiver.statuses = [-1]
    office = Office(control, timeout_s=0.2, ops=receiver)
    await office.send()
    assert control.outbox_open()[0].last_error == "no answer in time"
    while control.outbox_open():
        await office.send()
    await office.sender.close()
    assert set(receiver.keys()) == {a_page().id}


async def test_one_dead_receiver_does_not_delay_another(
    control: ControlStore, receiver: Receiver
) -> None:
    dead = Receiver(url="http://127.0.0.1:9/")
    control.enqueue([a_page(), a_page(route="dead"), a_page(cluster="boreas", id="b")])
    office = Office(control, ops=receiver, dead=dead)
    await office.send()
    await office.sender.close()
    assert len(receiver.requests) == 2
    assert [row.route for row in control.outbox_open()] == ["dead"]
    assert control.outbox_open()[0].last_error == "ConnectError"


async def test_a_refused_page_goes_to_the_fallback_with_all_that_follows_it(
    control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page(), a_page("resolve")])
    receiver.statuses = [400]
    with listening() as desk:
        office = Office(control, ops=receiver, desk=desk)
        await office.send(times=4)
        await office.sender.close()
    assert [body for _, body in desk.requests] == [a_page().body.encode(), b'{"action":"resolve"}']
    assert len(receiver.requests) == 2
    refused = control.outbox_all()[0]
    assert (refused.last_error, refused.sent_unix_ms) == ("HTTP 400", None)
    assert office.sender.counters.self_alerts == 1


async def test_a_page_that_is_not_taken_in_two_minutes_also_goes_to_the_fallback(
    control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page(), a_page("resolve")])
    receiver.statuses = [500] * 5
    with listening() as desk:
        office = Office(control, ops=receiver, desk=desk)
        await office.send(times=2, every_ms=FALLBACK_AFTER_MS // 2)
        assert desk.requests == []
        await office.send(times=10)
        await office.sender.close()
    assert [body for _, body in desk.requests] == [a_page().body.encode(), b'{"action":"resolve"}']
    assert len(set(receiver.keys())) == 2
    assert len(receiver.requests) == 7
    assert control.outbox_open() == []
    assert office.sender.counters.self_alerts == 1


async def test_a_page_for_a_route_that_is_gone_is_counted_and_blocks_nothing(
    control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page(route="gone")])
    office = Office(control, ops=receiver)
    await office.send()
    assert office.sender.counters.unrouted == 1
    assert control.outbox_open() == []
    await office.sender.close()


CRASH = """
import asyncio, os, sys
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.paging.outbox import Sender
from flopwatch_collector.paging.settings import PagingConfig, RouteConfig
from flopwatch_collector.paging.webhook import Webhook

class Crashing(ControlStore):
    def sent(self, *_):
        os._exit(9)

async def main(dsn, url):
    route = RouteConfig(name="ops", url=url, secret_env="S")
    channel = Webhook(route, b"canary-secret")
    await Sender(Crashing.open(dsn), {"ops": channel}, clock=lambda: 1_800_000_000_000).once()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_crash_between_the_answer_and_the_mark_sends_the_same_key_again(
    tmp_path: Path, control: ControlStore, receiver: Receiver
) -> None:
    control.enqueue([a_page()])
    command = [sys.executable, "-c", CRASH, f"sqlite:///{tmp_path}/control.db", receiver.url]
    ended = await asyncio.to_thread(
        subprocess.run, command, env=dict(os.environ), check=False, capture_output=True
    )
    assert ended.returncode == 9, ended.stderr.decode()
    assert len(receiver.requests) == 1
    office = Office(control, ops=receiver)
    await office.send(times=3)
    await office.sender.close()
    assert receiver.keys() == [a_page().id] * 2
    assert receiver.requests[0][1] == receiver.requests[1][1]
    assert control.outbox_open() == []


def _silence(**changes: object) -> Silence:
    silence = Silence(
        matchers={"cluster": "atlas", "rule": "alloc*"},
        starts_unix_ms=NOW_MS - 1,
        ends_unix_ms=NOW_MS + 3_600_000,
        by="kim",
        why="rack move",
    )
    return replace(silence, **changes)  # type: ignore[arg-type]


async def test_a_silenced_page_is_sent_when_the_silence_ends_and_it_still_fires(
    control: ControlStore, receiver: Receiver
) -> None:
    operations.add_silence(control, _silence())
    control.enqueue([a_page(), a_page(cluster="boreas", id="b")])
    office = Office(control, ops=receiver)
    await office.send(times=5)
    assert receiver.keys() == ["b"]
    assert control.outbox_open()[0].held_reason == "silence 1: rack move"
    office.now_ms = NOW_MS + 3_600_000 + HELD_RECHECK_MS
    await office.send()
    await office.sender.close()
    assert receiver.keys() == ["b", a_page().id]


async def test_an_outage_that_came_and_went_in_a_window_is_never_sent(
    control: ControlStore, receiver: Receiver
) -> None:
    window = Maintenance(
        cluster="atlas",
        nodes="*",
        starts_unix_ms=NOW_MS,
        ends_unix_ms=NOW_MS + 3_600_000,
        by="kim",
        why="power",
    )
    operations.add_maintenance(control, window)
    control.enqueue([a_page()])
    office = Office(control, ops=receiver)
    await office.send()
    control.enqueue([a_page("resolve")])
    office.now_ms += 7_200_000
    operations.add_silence(control, _silence(ends_unix_ms=NOW_MS * 2))
    await office.send(times=3)
    await office.sender.close()
    assert receiver.requests == []
    assert control.outbox_open() == []


async def test_a_resolve_is_not_silenced(control: ControlStore, receiver: Receiver) -> None:
    control.enqueue([a_page()])
    office = Office(control, ops=receiver)
    await office.send()
    operations.add_silence(control, _silence())
    control.enqueue([a_page("resolve")])
    await office.send(times=2)
    await office.sender.close()
    assert len(receiver.requests) == 2


async def test_a_blind_cluster_holds_its_allocation_pages_until_it_is_judged(
    control: ControlStore, receiver: Receiver
) -> None:
    blind = IncidentState(rule="blind", cluster="atlas", state=State.FIRING)
    control.save(states=[blind])
    control.enqueue([a_page(), a_page(id="b", rule="blind"), a_page(id="m", rule="mfu")])
    office = Office(control, ops=receiver)
    await office.send()
    assert sorted(receiver.keys()) == ["b", "m"]
    control.save(states=[replace(blind, state=State.CLEARING, version=1)])
    await office.send()
    await office.sender.close()
    assert len(receiver.requests) == 3


async def test_the_running_sender_is_woken_and_ends_when_cancelled(
    control: ControlStore, receiver: Receiver
) -> None:
    office = Office(control, ops=receiver)
    running = asyncio.create_task(office.sender.run())
    control.enqueue([a_page(), a_page("resolve")])
    office.sender.wake()
    while control.outbox_open():
        await asyncio.sleep(0.01)
        office.now_ms += 1_000
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await office.sender.close()
    assert len(receiver.requests) == 2


async def test_secrets_and_urls_are_in_no_log_and_no_table(
    control: ControlStore,
    receiver: Receiver,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    control.enqueue([a_page(), a_page("resolve")])
    receiver.statuses = [500, 0, 400]
    office = Office(control, ops=receiver)
    await office.send(times=5)
    await office.sender.close()
    control.close()
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    said = "".join(capfd.readouterr())
    assert "page_route_failing" in said
    assert "page_refused" in said
    assert b"canary" not in written
    assert "canary" not in said


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "https:///nowhere",
        "http://169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fd00:ec2::254]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://metadata.google.internal/",
        "http://100.100.100.200/",
        "https://kim:canary@example.com/",
        "not a url",
    ],
)
def test_a_url_that_pages_must_not_go_to_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        address.check_url(url, "paging.route[0].url")
    assert "paging.route[0].url" in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_url_of_the_lab_is_accepted() -> None:
    for url in ("https://pages.example/x", "http://10.1.2.3:8080/", "http://127.0.0.1/"):
        assert str(address.check_url(url)) == url


def test_a_secret_is_read_from_a_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    by_file = RouteConfig(name="a", url="https://x", secret_file=str(path))
    by_name = RouteConfig(name="a", url="https://x", secret_env="PAGE_SECRET")
    assert channel.secret_of(by_file, {}) == b"s3cret"
    assert channel.secret_of(by_name, {"PAGE_SECRET": "s"}) == b"s"
    with pytest.raises(UsageError, match="PAGE_SECRET is empty"):
        channel.secret_of(by_name, {})
    path.unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        channel.secret_of(by_file, {})


class OneCluster:
    """Live state of one cluster. Attributes: ratio: its allocation."""

    def __init__(self) -> None:
        self.ratio = 0.95

    def clusters(self) -> list[str]:
        return ["atlas"]

    def observe(self, cluster: str, tick_unix_ms: int) -> list[Observation]:
        return [
            Observation(
                cluster=cluster,
                rule="allocation",
                simulated=False,
                device_kind="gpu",
                tick_unix_ms=tick_unix_ms,
                lo=self.ratio,
                hi=self.ratio,
                value=self.ratio,
                coverage=1.0,
                in_service_cards=512,
                unseen_cards=0,
                lost_points={"MISSING": 1.6, "FREE": 3.4},
            )
        ]


async def test_from_observations_to_the_receiver_an_outage_is_one_trigger_and_one_resolve(
    control: ControlStore, receiver: Receiver
) -> None:
    live, office = OneCluster(), Office(control, ops=receiver)
    receiver.statuses = [500, 0, 202, 503]
    settings = WatchSettings(
        rules=RulesConfig(settle_s=0),
        paging=PagingConfig(route=(RouteConfig(name="ops", url=receiver.url, secret_env="S"),)),
    )
    watch = Watch(live, control, settings, lambda: office.now_ms, NOW_MS)
    for tick in range(400):
        live.ratio = 0.95 if tick < 100 else 0.98
        office.now_ms += 10_000
        watch.tick(office.now_ms)
        await office.sender.once()
    await office.sender.close()
    bodies = {
        key: json.loads(body)
        for key, (_, body) in zip(receiver.keys(), receiver.requests, strict=True)
    }
    assert [(b["action"], b["repeat_no"]) for b in bodies.values()] == [
        ("trigger", 0),
        ("resolve", 0),
        ("resolve", 1),
        ("resolve", 2),
        ("resolve", 3),
    ]
    assert len({b["dedup_key"] for b in bodies.values()}) == 1
    assert next(iter(bodies.values()))["lost_points"] == {"MISSING": 1.6, "FREE": 3.4}
