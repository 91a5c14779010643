"""What jobs say of themselves: the table of declarations, and the socket they arrive on.

A job's process sends one small JSON datagram a second to a unix socket (`flopwatch` SDK, or anything
that can write one). `JobTable` is pure; `Intake` is the socket. Invariants:

- A counter in a message is the process's own since it started. An account per (device, job) sums their
  increases, so it never falls while the job lives, whoever joins or leaves.
- A process first heard in the middle of its life adds nothing with its first message: what it did
  before was not watched. Only ``"event": "start"`` begins at zero.
- The sender is who the kernel says (SCM_CREDENTIALS, in the agent's pid namespace), so nobody speaks
  for another process and a container's pids are right. Only where the kernel cannot say, the message's
  own pid counts.
- Everything is bounded, and whatever is dropped is counted by reason in `JobTable.drops`.
- An account whose last process left stays readable in `finals` for `SILENT_MS_MAX`, so that the last
  increase reaches the row that it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from flopwatch_agent.labels import (
    Labels,
    clean_class,
    clean_convention,
    clean_dtype,
    clean_phase,
    clean_text,
)
from flopwatch_agent.reading import Device
from flopwatch_agent.shares import Holder
from flopwatch_proto.errors import UsageError

MESSAGE_BYTES_MAX: Final = 4096
PROCESSES_MAX: Final = 4096
ACCOUNTS_MAX: Final = 4096
SILENT_MS_MAX: Final = 60_000
"""A process silent for longer leaves, if its pid is gone; an account without processes is forgotten."""

_FLOPS_MAX: Final = 1e30
_DATAGRAMS_PER_WAKE: Final = 256
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One datagram. Unknown keys are ignored, so that an older agent hears a newer SDK.

    Attributes:
        v: version of the format; 1.
        device: ``cuda:<uuid>`` or ``cpu``; None when the process does not know.
        event: ``start``, ``exit`` or nothing.
        model_flops_total: model FLOPs of this process since it started, its own share of the job.
        tokens_total: tokens of this process; gives FLOPs where a number of FLOPs per token is known.
        flops_per_token: model FLOPs per token, training or inference as the job says.
    """

    v: int
    pid: int
    job: str | None = None
    team: str | None = None
    dtype: str | None = None
    convention: str | None = None
    workload_class: str | None = None
    phase: str | None = None
    device: str | None = None
    event: str | None = None
    model_flops_total: float | None = None
    tokens_total: float | None = None
    steps_total: float | None = None
    flops_per_token: float | None = None
    unix_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What one process declares.

    Attributes:
        device: as `device_key` writes it; None when the process did not say.
        job: never None; ``pid-<pid>`` where nothing names it.
    """

    pid: int
    job: str
    device: str | None
    labels: Labels


@dataclass(slots=True, kw_only=True)
class _Process:
    """Attributes: environment: read when first heard, as at exit it may be gone."""

    declared: Declared
    environment: Labels
    heard_ms: float
    counter: float | None


@dataclass(slots=True, kw_only=True)
class _Account:
    """Model FLOPs of one job on one device; None until any of its processes counted."""

    flops_total: float | None
    touched_ms: float


def device_key(device: Device) -> str:
    """Return how messages name a device: ``cpu`` or its UUID in lower case."""
    return "cpu" if device.kind == "cpu" else _key(device.uuid or device.slot)


def _key(text: str) -> str:
    text = text.removeprefix("cuda:").lower()
    return text if text == "cpu" else text.removeprefix("gpu-")


class JobTable:
    """Who declared what; pure.

    Args:
        labels_of: pid → labels of its environment, for what a message leaves out.
    """

    def __init__(self, labels_of: Callable[[int], Labels] | None = None) -> None:
        self.drops: Counter[str] = Counter()
        self.messages_total = 0
        self._labels_of = labels_of
        self._processes: dict[int, _Process] = {}
        self._accounts: dict[tuple[str | None, str], _Account] = {}

    def __len__(self) -> int:
        return len(self._processes)

    def apply(self, message: Message, now_ms: float) -> None:
        """Take a message. A message that makes no sense is dropped and counted, never raised.

        Args:
            message: its ``pid`` is the sender's, in the agent's pid namespace.
            now_ms: a monotonic clock.
        """
        if message.v != 1 or message.pid <= 0:
            self.drops["version" if message.v != 1 else "pid"] += 1
            return
        process = self._processes.get(message.pid)
        if process is None and len(self._processes) >= PROCESSES_MAX:
            self.drops["table_full"] += 1
            return
        self.messages_total += 1
        if process is not None and message.event == "start":
            process = None  # the pid is another process's now
        environment = self._environment(process, message.pid)
        declared = _declared(message, environment)
        counter = self._counter(message, environment)
        account = self._account(declared, now_ms)
        if account is None:
            return
        if counter is not None:
            account.flops_total = (account.flops_total or 0.0) + _increase(
                process, declared, counter, started=message.event == "start"
            )
        if message.event == "exit":
            self._processes.pop(message.pid, None)
            return
        self._processes[message.pid] = _Process(
            declared=declared, environment=environment, heard_ms=now_ms, counter=counter
        )

    def expire(self, now_ms: float, alive: Callable[[int], bool]) -> None:
        """Forget processes silent for `SILENT_MS_MAX` whose pid is gone, and accounts without any."""
        for pid, process in list(self._processes.items()):
            if now_ms - process.heard_ms > SILENT_MS_MAX and not alive(pid):
                del self._processes[pid]
        held = {(p.declared.device, p.declared.job) for p in self._processes.values()}
        for key, account in list(self._accounts.items()):
            if key in held:
                account.touched_ms = now_ms
            elif now_ms - account.touched_ms > SILENT_MS_MAX:
                del self._accounts[key]

    def for_pids(self, pids: Iterable[int]) -> dict[int, Declared]:
        """Return what the processes of a card declare, those that do."""
        return {pid: self._processes[pid].declared for pid in pids if pid in self._processes}

    def for_device(self, device: str) -> tuple[Declared, ...]:
        """Return the processes that say they hold a device, by `device_key`; in order of arrival."""
        return tuple(
            process.declared
            for process in self._processes.values()
            if process.declared.device == device
        )

    def flops_total(self, device: str, job: str) -> float | None:
        """Return the counter of a job's model FLOPs on a device; None: it declares none."""
        account = self._accounts.get((device, job))
        return None if account is None else account.flops_total

    def finals(self, device: str) -> dict[Holder, float]:
        """Return every account of a device, by (job, instance), those just ended too."""
        return {
            (job, None): account.flops_total
            for (held, job), account in self._accounts.items()
            if held == device and account.flops_total is not None
        }

    def _environment(self, process: _Process | None, pid: int) -> Labels:
        if process is not None:
            return process.environment
        return self._labels_of(pid) if self._labels_of is not None else Labels()

    def _account(self, declared: Declared, now_ms: float) -> _Account | None:
        key = (declared.device, declared.job)
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= ACCOUNTS_MAX:
                self.drops["accounts_full"] += 1
                return None
            account = self._accounts[key] = _Account(flops_total=None, touched_ms=now_ms)
        account.touched_ms = now_ms
        return account

    def _counter(self, message: Message, environment: Labels) -> float | None:
        """Return the process's counter of model FLOPs; None: it counts none, or nonsense."""
        counter = message.model_flops_total
        if counter is None and message.tokens_total is not None:
            per_token = message.flops_per_token or environment.flops_per_token
            counter = None if per_token is None else message.tokens_total * per_token
        if counter is not None and not 0.0 <= counter <= _FLOPS_MAX:
            self.drops["counter"] += 1
            return None
        return counter


def _declared(message: Message, environment: Labels) -> Declared:
    def first(said: str | None, fallback: str | None) -> str | None:
        return clean_text(said) or fallback

    labels = Labels(
        team=first(message.team, environment.team),
        user=environment.user,
        dtype=clean_dtype(message.dtype) or environment.dtype,
        convention=clean_convention(message.convention) or environment.convention,
        workload_class=clean_class(message.workload_class) or environment.workload_class,
        phase=clean_phase(message.phase) or environment.phase,
    )
    return Declared(
        pid=message.pid,
        job=first(message.job, environment.job) or f"pid-{message.pid}",
        device=None if message.device is None else _key(message.device[:128]),
        labels=labels,
    )


def _increase(
    process: _Process | None, declared: Declared, counter: float, *, started: bool
) -> float:
    """Return how much a process's counter rose since it was last heard under this account."""
    if process is None:
        return counter if started else 0.0
    before = process.declared
    if process.counter is None or (before.job, before.device) != (declared.job, declared.device):
        return 0.0
    return max(0.0, counter - process.counter)  # a fall is a restart


def pid_exists(pid: int) -> bool:
    """Return whether a process with this id exists, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Intake:
    """The unix datagram socket that messages arrive on.

    Args:
        path: of the socket; its folder is made. Anybody on the host may write to it.
        table: takes the messages.
        now_ms: a monotonic clock.
    """

    def __init__(self, path: Path, table: JobTable, now_ms: Callable[[], float]) -> None:
        self.path = path
        self.table = table
        self._now_ms = now_ms
        self._socket: socket.socket | None = None
        self._decode = msgspec.json.Decoder(Message).decode

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            UsageError: the path is too long, not writable, or another agent listens on it.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._replace_stale()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            listener.bind(str(self.path))
            self.path.chmod(0o666)
        except OSError as exc:
            listener.close()
            raise UsageError(f"[jobs] socket = {str(self.path)!r}: {exc}") from exc
        self._socket = listener
        asyncio.get_running_loop().add_reader(listener, self._drain)

    async def close(self) -> None:
        """Stop listening and remove the socket; safe unstarted and twice."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _replace_stale(self) -> None:
        """Remove a socket nobody listens on; refuse to take a living one away."""
        if not self.path.is_socket():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                structlog.get_logger().info("jobs_socket_replaced", path=str(self.path))

    def _drain(self) -> None:
        """Take what has arrived, at most so much that other work gets its turn."""
        for _ in range(_DATAGRAMS_PER_WAKE):
            if self._socket is None:
                return
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    MESSAGE_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return
            except OSError:
                self.table.drops["socket"] += 1
                return
            if flags & socket.MSG_TRUNC:
                self.table.drops["too_large"] += 1
                continue
            try:
                message = self._decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.table.drops["malformed"] += 1
                continue
            pid = _sender(ancillary)
            if pid:
                message = msgspec.structs.replace(message, pid=pid)
            self.table.apply(message, self._now_ms())


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the sender's pid as the kernel knows it; 0 where it cannot say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            return pid
    return 0
