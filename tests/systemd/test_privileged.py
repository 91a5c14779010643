"""The root helper as a process of its own, inside its unit, asked by root, by the agent and by others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from flopwatch_agent import access
from flopwatch_agent.privileged import (
    ASK_BYTES_MAX,
    ASKS_BURST,
    ASKS_PER_SECOND,
    NAMES,
    THREADS_LEFT_MAX,
    Helper,
    may_ask,
)
from processes import Process, awaited, environment

SANDBOX: Final = Path(__file__).with_name("sandbox.py")
UNIT: Final = Path(__file__).parents[2] / "systemd/flopwatch-privileged.service"
AGENT, STRANGER, USER = 64_001, 64_002, 64_003
PODS: Final = bytes(range(256)) * 64
"""Stands for a serialised list: the helper passes on what the kubelet said, whatever it means."""


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """What this process opens and connects to in the block, it does as another user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own is for its owner alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "agent").mkdir()
        os.chown(place / "agent", AGENT, AGENT)
        (place / "kubelet").mkdir(mode=0o700)
        yield place


@contextmanager
def helper(place: Path) -> Iterator[Process]:
    """The helper as its socket unit starts it: by the first who connects."""
    path = place / "privileged.sock"
    process = Process(
        (
            *("systemd-socket-activate", "--listen", str(path)),
            *("unshare", "--mount", "--propagation", "private", sys.executable, str(SANDBOX)),
            *(str(UNIT), str(place), sys.executable, "-m", "flopwatch_agent.privileged"),
            *("--agent-directory", str(place / "agent")),
            *("--kubelet", str(place / "kubelet/kubelet.sock")),
        ),
        place / "log",
        environment(),
    )
    try:
        awaited(path.exists, "the socket")
        path.chmod(0o666)
        yield process
    finally:
        process.end(signal.SIGKILL)


def ask(place: Path, asked: Any, uid: int = AGENT) -> Any:
    """What the helper answers one line; None: it hung up."""
    line = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(60)
        with as_user(uid):
            peer.connect(str(place / "privileged.sock"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(line + b"\n")
            if answer := peer.makefile("rb").readline():
                return json.loads(answer)
    return None


@contextmanager
def job(**variables: str) -> Iterator[int]:
    """A process of another user with these variables; yields its pid."""
    with subprocess.Popen(["sleep", "600"], user=USER, env=variables) as process:
        path = Path(f"/proc/{process.pid}/comm")
        awaited(lambda: path.read_text() == "sleep\n", "the job")
        try:
            yield process.pid
        finally:
            process.kill()


@contextmanager
def kubelet(path: Path) -> Iterator[None]:
    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        return PODS if request == b"" else b"not asked for everything"

    handlers = {"List": grpc.unary_unary_rpc_method_handler(answer)}
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers),)
        )
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(0).wait()


def test_the_agent_gets_what_names_the_job_and_no_secret(place: Path) -> None:
    secrets = {
        "SLURM_JWT": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "FLOPWATCH_TOKEN": "secret",
    }
    named = {"SLURM_JOB_ID": "7", "FLOPWATCH_TEAM": "atlas", "CUDA_VISIBLE_DEVICES": "0,1"}
    with job(**secrets, **named) as pid, helper(place):
        with as_user(AGENT), pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_bytes()
        asked = {"ask": "environ", "pid": pid}
        assert ask(place, asked) == {"ok": True, "environ": named}
        assert ask(place, asked, uid=0) == {"ok": True, "environ": named}


def test_the_agents_own_client_understands_it(place: Path) -> None:
    client = access.Helper(place / "privileged.sock")

    def environ() -> Mapping[str, str] | None:
        with as_user(AGENT), contextlib.suppress(TimeoutError):  # it waits a quarter of a second
            return client.environ(pid)
        return None

    with job(SLURM_JOB_ID="7", SLURM_JWT="secret") as pid, helper(place):
        assert awaited(environ, "an answer in time") == {"SLURM_JOB_ID": "7"}
        with kubelet(place / "kubelet/kubelet.sock"), as_user(AGENT):
            assert asyncio.run(client.podresources()) == PODS


def test_others_are_hung_up_on_and_logged(place: Path) -> None:
    with helper(place) as process:
        assert ask(place, {"ask": "environ", "pid": os.getpid()}, uid=STRANGER) is None
        said = f"refused reason=peer count=1: user {STRANGER}"
        awaited(lambda: said in process.said(), said)
        os.rmdir(place / "agent")  # no agent runs
        assert ask(place, {"ask": "environ", "pid": os.getpid()}, uid=AGENT) is None


def test_the_kubelets_list_is_passed_on_as_it_is(place: Path) -> None:
    with helper(place):
        assert "no socket" in ask(place, {"ask": "podresources"})["error"]
        with kubelet(place / "kubelet/kubelet.sock"):
            assert base64.b64decode(ask(place, {"ask": "podresources"})["list"]) == PODS
        with socket.socket(socket.AF_UNIX) as dead:
            (place / "kubelet/kubelet.sock").unlink(missing_ok=True)
            dead.bind(str(place / "kubelet/kubelet.sock"))
        assert "UNAVAILABLE" in ask(place, {"ask": "podresources"})["error"]


def test_a_line_without_an_end_is_hung_up_on_and_the_next_one_is_answered(place: Path) -> None:
    with helper(place) as process:
        assert ask(place, b"x" * 100 * ASK_BYTES_MAX) is None
        awaited(lambda: "refused reason=too_long" in process.said(), "a refusal")
        assert ask(place, {"ask": "nothing"})["ok"] is False


def no_pods() -> bytes:
    raise AssertionError("nobody asked for pods")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"\xff\xfe",
        b"[" * 4000,
        b'{"ask": "environ"}',
        b'{"ask": "environ", "pid": "1"}',
        b'{"ask": "environ", "pid": 1.0}',
        b'{"ask": "environ", "pid": -1}',
        b'{"ask": "environ", "pid": true}',
        b'{"ask": "environ", "pid": "../../etc"}',
        b'{"ask": "environ", "pid": 1, "name": "SLURM_JWT"}',
        b'{"ask": "podresources", "path": "/etc/shadow"}',
        b'{"ask": "read", "path": "/etc/shadow"}',
    ],
)
def test_what_is_not_in_the_vocabulary_is_refused_and_counted(line: bytes) -> None:
    helper = Helper(no_pods)
    assert json.loads(helper.answer(line, 0.0))["ok"] is False
    assert helper.refusals == {"vocabulary": 1}


def test_asks_are_bounded_and_come_back_with_time(capsys: pytest.CaptureFixture[str]) -> None:
    helper = Helper(no_pods)

    def rate_refused(asks: int, now_seconds: float) -> int:
        before = helper.refusals["rate"]
        for _ in range(asks):
            helper.answer(b"", now_seconds)
        return helper.refusals["rate"] - before

    assert rate_refused(int(ASKS_BURST) + 7, 0.0) == 7
    assert rate_refused(int(ASKS_PER_SECOND) + 3, 1.0) == 3
    assert capsys.readouterr().err.count("reason=rate") == 2  # one a second, with the count so far


def test_a_process_that_is_gone_is_an_answer(tmp_path: Path) -> None:
    helper = Helper(no_pods, proc=tmp_path)
    answer = json.loads(helper.answer(b'{"ask": "environ", "pid": 7}', 0.0))
    assert answer == {"ok": False, "error": f"{tmp_path}/7/environ: No such file or directory"}


def test_an_environment_that_hangs_is_left_behind_and_few_are(tmp_path: Path) -> None:
    helper = Helper(no_pods, proc=tmp_path, read_seconds_max=0.2)
    (tmp_path / "7").mkdir()
    (tmp_path / "8").mkdir()
    (tmp_path / "8/environ").write_bytes(b"RANK=3\0SECRET=x\0")
    os.mkfifo(tmp_path / "7/environ")  # opens once somebody writes

    def answer(pid: int) -> Any:
        return json.loads(helper.answer(json.dumps({"ask": "environ", "pid": pid}).encode(), 0.0))

    for _ in range(THREADS_LEFT_MAX):
        assert "does not answer" in answer(7)["error"]
    assert "processes do not show" in answer(8)["error"]
    (tmp_path / "7/environ").write_bytes(b"")  # all of them get an end of file
    awaited(lambda: answer(8)["ok"], "environments read again")
    assert answer(8)["environ"] == {"RANK": "3"}


def test_a_link_where_the_agents_directory_should_be_lets_nobody_in(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.chown(tmp_path / "target", AGENT, AGENT)
    os.chown(tmp_path / "link", AGENT, AGENT, follow_symlinks=False)
    assert may_ask(AGENT, tmp_path / "target")
    assert not may_ask(AGENT, tmp_path / "link")
    assert not may_ask(AGENT, tmp_path / "nowhere")


def test_no_name_in_the_vocabulary_looks_like_a_secret() -> None:
    words = ("TOKEN", "JWT", "SECRET", "PASS", "KEY", "CRED")
    suspicious = {name for name in NAMES if any(word in name for word in words)}
    assert suspicious == {"FLOPWATCH_MODEL_FLOPS_PER_TOKEN"}
