"""The web process as a child: how it starts, what it says without a collector, how it ends."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from web.web_server import running, said


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=30, trust_env=False)


def test_it_ends_and_closes_its_port_when_its_input_ends(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        url = said(process)
        assert get(f"{url}/healthz").status_code == 200
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
    address = urlsplit(url)
    with socket.socket() as peer, pytest.raises(ConnectionRefusedError):
        peer.connect((address.hostname, address.port))


def test_a_listening_stream_does_not_keep_it(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        url = said(process)
        with httpx.stream("GET", f"{url}/api/v1/stream", timeout=30, trust_env=False) as stream:
            assert next(stream.iter_lines()).startswith("retry:")
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == 0


def test_a_busy_port_is_a_wrong_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "flopwatch_collector.web", "--data", str(tmp_path)),
                *("--http", address, "--control", "sqlite://"),
            ],
            stdin=subprocess.PIPE,
            capture_output=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert "--http" in line
    assert address in line


def test_without_a_collector_it_answers_503_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        url = said(process)
        response = get(f"{url}/api/v1/fleet")
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["content-type"] == "application/problem+json"
        page = get(f"{url}/")
        assert page.status_code == 503
        assert "The collector does not answer now" in page.text
        ready = get(f"{url}/readyz")
        assert ready.status_code == 503
        assert ready.json()["web"] == {"ok": True}
        assert "flopwatch_web_collector_up 0.0" in get(f"{url}/metrics").text
        assert get(f"{url}/healthz").json()["status"] == "degraded"
