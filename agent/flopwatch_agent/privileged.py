"""The root helper: the two things that the unprivileged agent may not do, and nothing else.

One line of JSON asks, one line answers, over a unix socket that systemd opens:

    {"ask": "environ", "pid": 123}    {"ok": true, "environ": {"SLURM_JOB_ID": "7"}}
    {"ask": "podresources"}           {"ok": true, "list": "<base64 of the kubelet's answer>"}
    anything else                     {"ok": false, "error": "…"}

- Only root and the agent are heard. The agent is whoever owns its runtime directory, which systemd makes.
- Of an environment only the variables in `NAMES` leave, cut to `VALUE_CHARACTERS_MAX`: an environment
  holds passwords and tokens (``SLURM_JWT`` is one).
- Every refusal is counted by reason and logged, a reason at most once a second with its count so far.
- An environment may hang: the kernel takes a lock of the process for it, which a process that is stuck in
  the driver may hold. So it is read in a thread with a deadline, and of threads left behind there are few.
- Standard library alone, but for gRPC, which is imported only once somebody asks for pods.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import selectors
import socket
import stat
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

ASK_BYTES_MAX: Final = 4096
ENVIRON_BYTES_MAX: Final = 1024 * 1024
VALUE_CHARACTERS_MAX: Final = 512
CONNECTIONS_MAX: Final = 16
ASKS_PER_SECOND: Final = 100.0
ASKS_BURST: Final = 1000.0
ANSWER_SECONDS_MAX: Final = 5.0
READ_SECONDS_MAX: Final = 1.0
THREADS_LEFT_MAX: Final = 4
_PID_MAX: Final = 1 << 22
_FIRST_FD: Final = 3
"""Where systemd leaves the socket that it opened."""
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid

NAMES: Final = frozenset(
    {
        *(f"FLOPWATCH_{name}" for name in ("JOB", "TEAM", "USER", "WORKLOAD_CLASS", "PHASE")),
        *(f"FLOPWATCH_{name}" for name in ("DTYPE", "CONVENTION", "MODEL_FLOPS_PER_TOKEN")),
        *(f"SLURM_JOB_{name}" for name in ("ID", "ACCOUNT", "USER", "PARTITION", "QOS", "GPUS")),
        *(f"SLURM_{name}" for name in ("JOBID", "CLUSTER_NAME", "STEP_ID", "STEP_GPUS", "NTASKS")),
        *(f"SLURM_{name}" for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "HET_JOB_ID")),
        *(f"SLURM_{name}" for name in ("PROCID", "LOCALID", "NODEID")),
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "USER", "LOGNAME"),
    }
)
"""The variables that say whose work a process is. Full names, no prefixes: a prefix lets secrets out."""


class Refused(Exception):
    """An ask that is not answered. Attributes: reason: one of a few words, counted."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Helper:
    """Answers asks.

    Args:
        list_pods: asks the kubelet; returns the serialised answer. Raises Refused.
        proc: the process file system of the host.
        read_seconds_max: how long one environment may take.
    """

    def __init__(
        self,
        list_pods: Callable[[], bytes],
        proc: Path = Path("/proc"),
        read_seconds_max: float = READ_SECONDS_MAX,
    ) -> None:
        self.refusals: Counter[str] = Counter()
        self._list_pods = list_pods
        self._proc = proc
        self._read_seconds_max = read_seconds_max
        self._logged_seconds: dict[str, float] = {}
        self._tokens = ASKS_BURST
        self._filled_seconds = 0.0
        self._left: list[threading.Thread] = []

    def answer(self, line: bytes, now_seconds: float) -> bytes:
        """Return the line that answers an ask. now_seconds: a monotonic clock."""
        try:
            self._spend(now_seconds)
            said = {"ok": True, **self._done(line)}
        except Refused as exc:
            self.refuse(exc.reason, str(exc), now_seconds)
            said = {"ok": False, "error": str(exc)}
        return json.dumps(said).encode() + b"\n"

    def refuse(self, reason: str, text: str, now_seconds: float) -> None:
        """Count a refusal, and log it unless one with this reason was logged within the second."""
        self.refusals[reason] += 1
        if now_seconds - self._logged_seconds.get(reason, float("-inf")) >= 1.0:
            self._logged_seconds[reason] = now_seconds
            count = self.refusals[reason]
            sys.stderr.write(f"<4>refused reason={reason} count={count}: {text}\n")
            sys.stderr.flush()

    def _spend(self, now_seconds: float) -> None:
        gained = (now_seconds - self._filled_seconds) * ASKS_PER_SECOND
        self._tokens = min(ASKS_BURST, self._tokens + gained)
        self._filled_seconds = now_seconds
        if self._tokens < 1.0:
            raise Refused("rate", f"more than {ASKS_PER_SECOND:.0f} asks a second")
        self._tokens -= 1.0

    def _done(self, line: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):
            asked = None
        match asked:
            case {"ask": "environ", "pid": pid, **rest} if not rest and _is_pid(pid):
                return {"environ": self._environ(pid)}
            case {"ask": "podresources", **rest} if not rest:
                return {"list": base64.b64encode(self._list_pods()).decode()}
        raise Refused("vocabulary", "asks are environ (with a pid) and podresources")

    def _environ(self, pid: int) -> dict[str, str]:
        data = self._read(self._proc / str(pid) / "environ")
        entries = (entry.partition("=") for entry in data.decode(errors="replace").split("\0"))
        return {name: value[:VALUE_CHARACTERS_MAX] for name, _, value in entries if name in NAMES}

    def _read(self, path: Path) -> bytes:
        found: list[bytes | OSError] = []

        def read() -> None:
            try:
                with path.open("rb") as file:
                    found.append(file.read(ENVIRON_BYTES_MAX))
            except OSError as exc:
                found.append(exc)

        self._left = [thread for thread in self._left if thread.is_alive()]
        if len(self._left) >= THREADS_LEFT_MAX:
            raise Refused("hanging", f"{THREADS_LEFT_MAX} processes do not show their environment")
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(self._read_seconds_max)
        if not found:
            self._left.append(thread)
            raise Refused("hanging", f"{path}: does not answer")
        if isinstance(found[0], OSError):
            raise Refused("environ", f"{path}: {found[0].strerror}")
        return found[0]


def _is_pid(value: object) -> bool:
    return type(value) is int and 0 < value <= _PID_MAX  # True is an int to isinstance


def list_pods(path: Path) -> bytes:
    """Return the kubelet's serialised ``ListPodResourcesResponse``.

    Raises:
        Refused: there is no kubelet, or it does not answer.
    """
    if not path.is_socket():
        raise Refused("kubelet", f"no socket at {path}")
    from flopwatch_agent import channel  # not before somebody asks

    method = "/v1.PodResourcesLister/List"
    try:
        return asyncio.run(channel.ask(path, method, b"", seconds_max=ANSWER_SECONDS_MAX))
    except channel.Refusal as exc:
        raise Refused("kubelet", f"{path}: {exc.status.name}") from exc
    except (*channel.BROKEN, TimeoutError) as exc:
        raise Refused("kubelet", f"{path}: UNAVAILABLE: {type(exc).__name__}") from exc


def may_ask(peer_uid: int, agent_directory: Path) -> bool:
    """Return whether a peer is root or the owner of the agent's runtime directory."""
    if peer_uid == 0:
        return True
    try:
        found = agent_directory.lstat()
    except OSError:
        return False  # no agent runs
    return stat.S_ISDIR(found.st_mode) and found.st_uid == peer_uid


class Server:
    """Takes connections and passes their lines on; one ask at a time.

    Args:
        agent_directory: its owner is the agent.
    """

    def __init__(self, listener: socket.socket, helper: Helper, agent_directory: Path) -> None:
        self._listener = listener
        self._helper = helper
        self._agent_directory = agent_directory
        self._pending: dict[socket.socket, bytearray] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> NoReturn:
        """Answer for ever."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return  # it went again
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        now = time.monotonic()
        if not may_ask(uid, self._agent_directory):
            self._helper.refuse("peer", f"user {uid}, process {pid}", now)
        elif len(self._pending) >= CONNECTIONS_MAX:
            self._helper.refuse("connections", f"more than {CONNECTIONS_MAX}", now)
        else:
            peer.settimeout(ANSWER_SECONDS_MAX)
            self._pending[peer] = bytearray()
            self._selector.register(peer, selectors.EVENT_READ)
            return
        peer.close()

    def _read(self, peer: socket.socket) -> None:
        pending = self._pending[peer]
        try:
            data = peer.recv(ASK_BYTES_MAX)
            pending += data
            while b"\n" in pending:
                line, _, rest = bytes(pending).partition(b"\n")
                pending[:] = rest
                peer.sendall(self._helper.answer(line, time.monotonic()))
        except OSError:
            data = b""
        if len(pending) > ASK_BYTES_MAX:
            self._helper.refuse("too_long", f"{len(pending)} bytes", time.monotonic())
            data = b""
        if not data:
            self._selector.unregister(peer)
            del self._pending[peer]
            peer.close()


def main(argv: list[str] | None = None) -> int:
    """Serve the socket that systemd opened. Exit code: 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="flopwatch-privileged", description="The root helper.")
    parser.add_argument("--agent-directory", type=Path, default=Path("/run/flopwatch"))
    parser.add_argument(
        "--kubelet", type=Path, default=Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    )
    flags = parser.parse_args(argv)
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        sys.stderr.write("flopwatch-privileged: start flopwatch-privileged.socket instead\n")
        return 2
    listener = socket.socket(fileno=_FIRST_FD)
    helper = Helper(lambda: list_pods(flags.kubelet))
    Server(listener, helper, flags.agent_directory).serve()


if __name__ == "__main__":
    sys.exit(main())
