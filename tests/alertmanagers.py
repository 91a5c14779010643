"""A real pair of Alertmanagers on loopback, which gossip with each other."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from processes import awaited

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
    """Attributes: urls: of the members; members: their processes."""

    def __init__(self, home: Path, hook: str) -> None:
        """hook: where they tell of alerts."""
        self._home = home
        (home / "alertmanager.yml").write_text(CONFIG.format(url=hook), encoding="utf-8")
        self._gossip = [free_port() for _ in range(2)]
        self._ports = [free_port() for _ in range(2)]
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        self.members = [self._start(number) for number in range(2)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        assert BINARY is not None, "install prometheus-alertmanager"
        return subprocess.Popen(
            [
                BINARY,
                f"--config.file={self._home / 'alertmanager.yml'}",
                f"--storage.path={self._home / str(number)}",
                f"--web.listen-address=127.0.0.1:{self._ports[number]}",
                f"--cluster.listen-address=127.0.0.1:{self._gossip[number]}",
                f"--cluster.peer=127.0.0.1:{self._gossip[1 - number]}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self, number: int) -> None:
        """SIGKILL a member, and start it again: it knows no alert."""
        self.members[number].kill()
        self.members[number].wait()
        self.members[number] = self._start(number)

    def active(self, member: int = 0) -> list[dict[str, Any]]:
        """The alerts that a member holds."""
        answer = httpx.get(f"{self.urls[member]}/api/v2/alerts", trust_env=False)
        answer.raise_for_status()
        alerts: list[dict[str, Any]] = answer.json()
        return alerts

    def ready(self, member: int) -> bool:
        try:
            return httpx.get(f"{self.urls[member]}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Leave no process behind."""
        for member in self.members:
            member.terminate()
        for member in self.members:
            member.wait()


@contextmanager
def alertmanagers(home: Path, hook: str) -> Iterator[Pair]:
    """A pair for the length of a block, when both are ready."""
    pair = Pair(home, hook)
    try:
        for number in range(2):
            awaited(lambda number=number: pair.ready(number), "an Alertmanager")  # type: ignore[misc]
        yield pair
    finally:
        pair.close()
