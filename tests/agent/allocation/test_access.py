"""What needs rights: directly, and by the root helper's socket."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_kubelet import pod
from flopwatch_agent.access import Direct, Either, Helper
from flopwatch_agent.labels import Environments
from flopwatch_agent.podresources import message

_HUFFMAN_LOCALHOST = bytes.fromhex("a0e41d139d09")  # RFC 7541, appendix B


class FakeHelper:
    """Answers every ask with what a test says, in a thread of its own loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: dict[str, Any] | bytes = {"ok": False, "error": "nothing to say"}
        self.asked: list[dict[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()

    def __enter__(self) -> FakeHelper:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_unix_server(self._serve, self.path))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(json.loads(await reader.readline()))
        answer = self.answer
        writer.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()


@pytest.fixture
def helper(tmp_path: Path) -> Iterator[FakeHelper]:
    with FakeHelper(tmp_path / "privileged.sock") as running:
        yield running


class Forbidden(Direct):
    """As if this process had no rights."""

    def environ(self, pid: int) -> dict[str, str]:
        raise PermissionError(13, "Permission denied")

    async def podresources(self) -> bytes:
        raise PermissionError(13, "Permission denied")


def test_the_own_environment_is_read_directly() -> None:
    assert Direct().environ(os.getpid())["PATH"] == os.environ["PATH"]
    with pytest.raises(FileNotFoundError):
        Direct().environ(2**22)


def test_an_environment_that_hangs_costs_a_deadline_and_never_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flopwatch_agent.access._ENVIRON_SECONDS_MAX", 0.05)
    (tmp_path / "7").mkdir()
    os.mkfifo(tmp_path / "7" / "environ")  # nobody writes: opening it hangs
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "environ").write_text("A=b")
    direct, before = Direct(tmp_path), threading.active_count()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            direct.environ(7)
    assert direct.environ(8) == {"A": "b"}
    for _ in range(20):
        with pytest.raises(TimeoutError):
            direct.environ(7)
    assert threading.active_count() - before <= 5
    for _ in range(threading.active_count() - before):  # let them go
        os.close(os.open(tmp_path / "7" / "environ", os.O_RDWR | os.O_NONBLOCK))


def test_the_helper_is_asked_only_where_this_process_may_not(helper: FakeHelper) -> None:
    helper.answer = {"ok": True, "environ": {"SLURM_JOB_ID": "81", "SLURM_JOB_ACCOUNT": "pre"}}
    either = Either(Forbidden(), Helper(helper.path))
    labels = Environments(access=either).labels(os.getpid())
    assert (labels.job, labels.team) == ("81", "pre")
    assert helper.asked == [{"ask": "environ", "pid": os.getpid()}]
    assert "PATH" in Either(Direct(), Helper(helper.path)).environ(os.getpid())
    assert len(helper.asked) == 1


def test_without_a_helper_the_missing_right_is_told(tmp_path: Path) -> None:
    environments = Environments(access=Either(Forbidden(), Helper(tmp_path / "nowhere")))
    environments.labels(os.getpid())
    assert environments.unreadable_total == 1


@pytest.mark.parametrize(
    "answer",
    [{"ok": False, "error": "no such process"}, {"ok": True}, b"not json\n", b"[]\n", b""],
)
async def test_what_the_helper_refuses_or_garbles_is_an_error_of_the_system(
    helper: FakeHelper, answer: dict[str, Any] | bytes
) -> None:
    helper.answer = answer
    with pytest.raises(OSError, match="helper"):
        Helper(helper.path).environ(1)
    with pytest.raises(OSError, match="helper"):
        await Helper(helper.path).podresources()


async def test_the_helper_hands_the_kubelets_answer_through(helper: FakeHelper) -> None:
    answer = message("ListPodResourcesResponse")(pod_resources=[pod("ml", "a", "GPU-1")])
    data = answer.SerializeToString()
    helper.answer = {"ok": True, "list": base64.b64encode(data).decode()}
    either = Either(Forbidden(), Helper(helper.path))
    assert await either.podresources() == data
    assert helper.asked == [{"ask": "podresources"}]


async def test_a_kubelet_is_asked_as_localhost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flopwatch_agent.access._KUBELET_SECONDS_MAX", 2.0)
    sent = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(3) + b"\x04" + bytes(5))  # HTTP/2: empty SETTINGS
        while data := await reader.read(4096):
            sent.extend(data)
            if b"PodResourcesLister/List" in sent or _HUFFMAN_LOCALHOST in sent:
                break
        writer.close()

    path = tmp_path / "kubelet.sock"
    async with await asyncio.start_unix_server(serve, path):
        with pytest.raises(OSError, match="kubelet"):
            await Direct(kubelet_socket=path).podresources()
    assert b"localhost" in sent or _HUFFMAN_LOCALHOST in sent
    assert b"kubelet.sock" not in sent


def test_the_messages_are_those_of_the_api_on_the_wire() -> None:
    def field(number: int, *parts: bytes) -> bytes:
        data = b"".join(parts)
        return bytes((number << 3 | 2, len(data))) + data

    devices = field(2, field(1, b"r"), field(2, b"GPU-1"), field(3, b""))  # 3: topology, not read
    claim = field(
        5, field(2, b"c"), field(3, b"n"), field(4, *map(field, (2, 3, 4), (b"d", b"p", b"x")))
    )
    wire = field(1, field(1, b"a"), field(2, b"n"), field(3, field(1, b"c"), devices, claim))
    (one,) = message("ListPodResourcesResponse").FromString(wire).pod_resources
    (container,) = one.containers
    assert (one.name, one.namespace, container.name) == ("a", "n", "c")
    assert container.devices[0].resource_name == "r"
    assert list(container.devices[0].device_ids) == ["GPU-1"]
    (held,) = container.dynamic_resources[0].claim_resources
    assert (held.driver_name, held.pool_name, held.device_name) == ("d", "p", "x")
    assert message("PodResources").DESCRIPTOR.full_name == "v1.PodResources"
