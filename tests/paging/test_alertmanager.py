"""A real pair of Alertmanagers: told, reminded, escalated and resolved."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flopwatch_collector.control.aside import Aside
from flopwatch_collector.control.store import ControlStore
from flopwatch_collector.incident_state import Act, State
from flopwatch_collector.paging.settings import RouteConfig
from paging.conftest import Outage, config
from processes import awaited
from receivers import watcher

BINARY = shutil.which("prometheus-alertmanager")
CONFIG = """
route: {{receiver: desk, group_by: [cluster], group_wait: 0s, group_interval: 1s, repeat_interval: 4h}}
receivers: [{{name: desk, webhook_configs: [{{url: "{url}", send_resolved: true}}]}}]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Pair:
    """Attributes: urls: of the members; told: what they told their receiver."""

    def __init__(
        self, urls: list[str], told: list[Any], members: list[subprocess.Popen[bytes]]
    ) -> None:
        self.urls, self.told, self.members = urls, told, members

    def active(self, member: int = 0) -> list[dict[str, Any]]:
        """The alerts that a member holds."""
        answer = httpx.get(f"{self.urls[member]}/api/v2/alerts", trust_env=False)
        answer.raise_for_status()
        alerts: list[dict[str, Any]] = answer.json()
        return alerts


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    assert BINARY is not None, "install prometheus-alertmanager"
    with watcher() as (hook, told):
        (tmp_path / "alertmanager.yml").write_text(CONFIG.format(url=hook), encoding="utf-8")
        gossip = [free_port() for _ in range(2)]
        ports = [free_port() for _ in range(2)]
        members = [
            subprocess.Popen(
                [
                    BINARY,
                    f"--config.file={tmp_path / 'alertmanager.yml'}",
                    f"--storage.path={tmp_path / str(number)}",
                    f"--web.listen-address=127.0.0.1:{ports[number]}",
                    f"--cluster.listen-address=127.0.0.1:{gossip[number]}",
                    f"--cluster.peer=127.0.0.1:{gossip[1 - number]}",
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in range(2)
        ]
        try:
            made = Pair([f"http://127.0.0.1:{port}" for port in ports], told, members)
            for url in made.urls:
                awaited(lambda url=url: ready(url), "an Alertmanager")  # type: ignore[misc]
            yield made
        finally:
            for member in members:
                member.terminate()
            for member in members:
                member.wait()


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def heard(pair: Pair, status: str) -> list[dict[str, Any]]:
    """The alerts with a status that the receiver was told of, by any member."""
    return [a for _, told in pair.told for a in told["alerts"] if a["status"] == status]


async def test_a_pair_holds_an_outage_once_pages_what_is_worse_and_lets_go_of_it(
    control: ControlStore, pair: Pair
) -> None:
    route = RouteConfig(name="am", kind="alertmanager", url=pair.urls[0], peers=(pair.urls[1],))
    outage = Outage(control, config(route), time.time_ns() // 1_000_000)
    outage.decide(Act.TRIGGER)
    await outage.send()
    for member in (0, 1):
        ((alert),) = pair.active(member)
        assert alert["labels"]["alertname"] == "FlopwatchAllocation"
        assert (alert["labels"]["owner"], alert["labels"]["severity"]) == ("hardware", "warning")
        assert alert["annotations"]["summary"].startswith("atlas alloc 91.2%")
    awaited(lambda: heard(pair, "firing"), "the first page")

    outage.decide(Act.ESCALATE, 1, "value", severity="critical", hi=0.7, lo=0.7, value=0.7)
    await outage.send()
    awaited(
        lambda: [a for a in heard(pair, "firing") if a["labels"]["severity"] == "critical"],
        "the escalation",
    )
    ((alert),) = pair.active()  # the one before it has ended
    assert alert["labels"]["escalation"] == "1"

    # A member that was away hears of it with the next reminder; one that is away stops nobody.
    pair.members[0].terminate()
    pair.members[0].wait()
    aside = Aside("reminder")
    before = outage.now_ms
    outage.now_ms += 60_000
    await outage.reminder.once(aside)
    await aside.end()
    assert outage.reminder.counters.told == 1
    ends = awaited(lambda: pair.active(1), "the alert on the other")[0]["endsAt"]
    assert ends > alert["endsAt"]

    outage.now_ms = before
    outage.decide(Act.RESOLVE, state=State.RESOLVED)
    await outage.send()
    assert control.outbox_open() == []
    awaited(lambda: not pair.active(1), "its end")
    awaited(
        lambda: [a for a in heard(pair, "resolved") if a["labels"]["escalation"] == "1"],
        "the resolved page",
    )


async def test_where_no_member_answers_the_page_waits(control: ControlStore) -> None:
    route = RouteConfig(name="am", kind="alertmanager", url=f"http://127.0.0.1:{free_port()}")
    outage = Outage(control, config(route), time.time_ns() // 1_000_000)
    outage.decide(Act.TRIGGER)
    await outage.send()
    ((row),) = control.outbox_open()
    assert row.attempts == 1
    assert row.last_error == "ConnectError"
