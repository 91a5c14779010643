"""One probe under guard: real processes, a real probe of the processor, a fake driver that changes."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakenvml import Script, device
from flopwatch_agent.ceilings import Ceilings
from flopwatch_agent.clock import SystemClock
from flopwatch_agent.probing.budget import Accounts
from flopwatch_agent.probing.guard import Guard, Order, Outcomes, Refused
from flopwatch_agent.probing.inbox import Inbox, Record
from flopwatch_agent.probing.lock import Lock, word_of
from flopwatch_kernels.goldens import Goldens
from flopwatch_kernels.probe import ProbeError, ProbeResult
from probe_results import result
from processes import awaited

UUID = "GPU-00000000-0000-4000-8000-000000000000"


def order(tmp_path: Path, **more: Any) -> Order:
    """A probe of the fake card that loads the processor."""
    said = {
        "device": UUID,
        "dtype": "fp32",
        "policy": "idle",
        "wall_seconds": 25.0,
        "locks": str(tmp_path / "locks"),
        "data": str(tmp_path / "data"),
        "measured": "cpu",
        **more,
    }
    return msgspec.convert(said, Order)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no part of any probe."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def results(tmp_path: Path) -> list[Record]:
    return list(Inbox(tmp_path / "data").take())


def load_process(parent: int) -> int | None:
    """The process that computes: a child of the guard that is no watcher."""
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"flopwatch_kernels" in command:
            return int(path.name)
    return None


@contextmanager
def orphans_are_ours() -> Iterator[None]:
    """Processes whose parent dies become children of this one, so that it hears how they end."""
    prctl, set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(set_child_subreaper, 1)
    try:
        yield
    finally:
        prctl(set_child_subreaper, 0)


class Running:
    """A guard in a process of its own, as the agent starts it."""

    def __init__(self, made: Order) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flopwatch_agent.probing", msgspec.json.encode(made).decode()],
            stderr=subprocess.DEVNULL,
        )
        self.load = awaited(lambda: self.ended() or load_process(self.process.pid), "a probe")

    def ended(self) -> int | None:
        assert self.process.poll() is None, f"ended with {self.process.returncode}"
        return None


def test_a_process_that_appears_ends_the_probe_and_the_record_names_it(
    tmp_path: Path, script: Script, stranger: subprocess.Popen[bytes]
) -> None:
    running = Running(order(tmp_path, sustained=True))
    word = word_of(tmp_path / "locks", UUID)
    assert word is not None
    assert (word.pid, word.alive) == (running.process.pid, True)
    # Its own process on the card is nobody else's: it goes on.
    script.add(f"device 0 process {running.load} compute 1073741824")
    time.sleep(0.3)
    assert running.process.poll() is None
    script.add(f"device 0 process {stranger.pid} compute 1073741824")
    assert running.process.wait(60) == 0
    (record,) = results(tmp_path)
    assert (record.outcome, record.reason) == ("aborted", f"process {stranger.pid} is on the card")
    assert (record.slot, record.device_uuid, record.serial) == ("0000:18:00.0", UUID, "1654")
    assert load_process(running.process.pid) is None
    ended = word_of(tmp_path / "locks", UUID)
    assert ended is not None
    assert ended.ended_ns is not None
    (run,) = Accounts(tmp_path / "data").load(UUID).runs
    assert run.aborted
    assert run.charged_ms < 25_000
    assert not (tmp_path / "data" / "ceilings.json").exists()


def test_the_agent_ends_a_probe_by_a_signal(tmp_path: Path, script: Script) -> None:
    running = Running(order(tmp_path, sustained=True))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    (record,) = results(tmp_path)
    assert (record.outcome, record.reason) == ("aborted", "the agent ended it")


def test_a_guard_that_is_killed_takes_its_probe_along_stays_charged_and_its_lock_is_free(
    tmp_path: Path, script: Script
) -> None:
    running = Running(order(tmp_path, sustained=True))
    guard, load = running.process, running.load
    assert load is not None
    awaited(lambda: b"libtorch" in Path(f"/proc/{load}/maps").read_bytes(), "a load that computes")
    children = Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text().split()
    with orphans_are_ours():
        guard.kill()
        guard.wait()
        ends = {int(pid): os.waitpid(int(pid), 0)[1] for pid in children}
    # By the kernel's word at once: its own alarm would be another signal, the end of its load none.
    assert os.WTERMSIG(ends[load]) == signal.SIGKILL
    word = word_of(tmp_path / "locks", UUID)
    assert word is not None
    assert not word.alive
    assert Accounts(tmp_path / "data").load(UUID).runs[0].charged_ms == 25_000
    with pytest.raises(Refused, match=r"budget is spent: 25\.0 s of 28\.8 s in 8 h"):
        Guard(SystemClock()).run(order(tmp_path))


def test_a_probe_by_hand_leaves_result_ceiling_and_charge(tmp_path: Path, script: Script) -> None:
    found = Guard(SystemClock()).run(order(tmp_path, policy="hand", wall_seconds=120.0))
    assert found.result is not None
    assert found.record.outcome == "ok"
    (record,) = results(tmp_path)
    assert msgspec.json.encode(record) == msgspec.json.encode(found.record)
    assert (record.kind, record.dtype, record.sku) == ("gemm", "fp32", "NVIDIA H100 80GB HBM3")
    assert record.median_flops == found.result.median_flops
    assert record.median_flops > 0
    message = record.message()
    assert json.loads(message.result_json)["policy"] == "hand"
    assert not message.HasField("kappa")
    ceilings = Ceilings(tmp_path / "data")
    ceilings.refresh()
    assert ceilings.flops == {(UUID, "fp32"): record.median_flops}
    assert 0 < Accounts(tmp_path / "data").load(UUID).runs[0].charged_ms < 120_000


def never(**_: Any) -> ProbeResult:
    raise AssertionError("it was probed")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("device 0 process {pid} compute 1", r"process \d+ is on the card"),
        ("device 0 absent", "knows no card"),
        ("error nvmlDeviceGetComputeRunningProcesses NOT_SUPPORTED", "does not list"),
        ("error nvmlInit DRIVER_NOT_LOADED", "does not answer"),
    ],
)
def test_a_card_that_may_be_somebodys_is_not_touched(
    tmp_path: Path, script: Script, line: str, reason: str
) -> None:
    script.add(line.format(pid=os.getppid()))
    with pytest.raises(Refused, match=reason):
        Guard(SystemClock(), never).run(order(tmp_path))
    assert results(tmp_path) == []


def test_a_driver_that_falls_silent_ends_the_probe(tmp_path: Path, script: Script) -> None:
    def wait_for_a_reason(**more: Any) -> ProbeResult:
        script.add("hang nvmlDeviceGetComputeRunningProcesses")
        raise ProbeError(f"the probe was stopped: {awaited(more['stop_reason'], 'a reason')}")

    found = Guard(SystemClock(), wait_for_a_reason).run(order(tmp_path))
    assert found.record.outcome == "aborted"
    assert found.record.reason == "the driver no longer says who is on the card"


def test_a_probe_that_fails_by_itself_is_a_failure_and_no_abortion(
    tmp_path: Path, script: Script
) -> None:
    def fail(**_: Any) -> ProbeResult:
        raise ProbeError("out of memory")

    found: Outcomes = Guard(SystemClock(), fail).run(order(tmp_path))
    assert (found.record.outcome, found.record.reason) == ("failed", "out of memory")


def test_a_screen_that_the_agent_ordered_is_held_against_the_hashes_of_this_host(
    tmp_path: Path, script: Script
) -> None:
    ordered = order(tmp_path, kind="sdc", dtype="bf16", budget_ratio=0.01)
    found = Guard(SystemClock(), lambda **_: result("sdc")).run(ordered)
    assert found.record.outcome == "ok"
    assert found.record.result["detail"]["golden"] == "candidate"
    path = tmp_path / "data" / "goldens.json"
    (golden,) = msgspec.json.decode(path.read_bytes(), type=Goldens).goldens
    others = ("cuda:GPU-1", "cuda:GPU-2", "cuda:GPU-3")
    agreed = msgspec.structs.replace(golden, product="cc", devices=others)
    path.write_bytes(msgspec.json.encode(Goldens(goldens=(agreed,))))
    Guard(SystemClock(), lambda **_: result("sdc")).run(ordered)
    record = results(tmp_path)[-1]
    assert record.outcome == "corrupt"
    assert record.reason.startswith("the seeded bf16 product hashes to bb and to cc elsewhere")


def test_a_process_on_the_second_card_of_a_copy_ends_it_too(tmp_path: Path, script: Script) -> None:
    other = "GPU-00000000-0000-4000-8000-000000000001"
    script.write(device(0, uuid=UUID), device(1, uuid=other))
    pair = order(tmp_path, kind="p2p", dtype=None, peer=other)

    def wait_for_a_reason(**more: Any) -> ProbeResult:
        assert more["peer"] == other
        script.add(f"device 1 process {os.getppid()} compute 1")
        raise ProbeError(f"the probe was stopped: {awaited(more['stop_reason'], 'a reason')}")

    found = Guard(SystemClock(), wait_for_a_reason).run(pair)
    assert found.record.outcome == "aborted"
    assert word_of(tmp_path / "locks", other) is not None


def test_one_card_of_a_host_is_probed_at_a_time_and_the_other_ones_process_is_named(
    tmp_path: Path, script: Script
) -> None:
    lock = Lock(tmp_path / "locks", "GPU-2").take("gemm bf16 burst", 1)
    with pytest.raises(Refused, match=f"pid {os.getpid()} probes \\(gemm bf16 burst\\)"):
        Guard(SystemClock(), never).run(order(tmp_path))
    lock.release(2)
    Lock(tmp_path / "locks", UUID).take("sdc", 3).release(4)


def test_where_nothing_can_be_kept_nothing_is_probed(tmp_path: Path, script: Script) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(Refused, match="the budget cannot be kept"):
        Guard(SystemClock(), never).run(order(tmp_path))
    (tmp_path / "locks").rename(tmp_path / "elsewhere")
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(Refused, match="locks"):
        Guard(SystemClock(), never).run(order(tmp_path))


def test_an_inbox_is_bounded_and_forgets_only_what_is_kept(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    for at in (2, 1):
        inbox.put(
            Record(slot="s", start_unix_ms=at, kind="sdc", outcome="corrupt", reason="2 of 3")
        )
    (tmp_path / "probes" / "000-x.json").write_text("{")
    assert [record.start_unix_ms for record in inbox.take()] == [1, 2]
    assert inbox.refused == 1
    inbox.put(Record(slot="s", start_unix_ms=3, kind="sdc"))
    inbox.kept()
    assert [record.start_unix_ms for record in Inbox(tmp_path).take()] == [3]


def test_threads_of_the_witness_end_with_it(tmp_path: Path, script: Script) -> None:
    before = threading.active_count()
    with pytest.raises(Refused):
        Guard(SystemClock(), never).run(order(tmp_path, device="cuda:7"))
    assert threading.active_count() == before
