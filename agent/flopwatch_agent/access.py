"""What needs rights: other users' environments and the kubelet's socket. Directly, or by a root helper.

The helper is a process of its own with a fixed vocabulary on a unix socket, one JSON object per line:

    {"ask": "environ", "pid": 123}  →  {"ok": true, "environ": {"SLURM_JOB_ID": "6", …}}
    {"ask": "podresources"}         →  {"ok": true, "list": "<base64 of ListPodResourcesResponse>"}
    anything that fails             →  {"ok": false, "error": "…"}

An environment may hang: the kernel takes a lock of the process for it, and a process that is stuck in the
driver may hold that lock. So it is read in a thread with a deadline; a thread that does not come back is
left behind, and after a few of them nothing is read any more.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import queue
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from flopwatch_agent import channel
from flopwatch_agent.podresources import message

ENVIRON_BYTES_MAX: Final = 1024 * 1024
KUBELET_SOCKET: Final = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
HELPER_SOCKET: Final = Path("/run/flopwatch-privileged.sock")

_ENVIRON_SECONDS_MAX: Final = 0.25
_KUBELET_SECONDS_MAX: Final = 4.0
_THREADS_LOST_MAX: Final = 4
_SERVICE: Final = "/v1.PodResourcesLister/"


class Access(Protocol):
    """The two things that may need rights."""

    def environ(self, pid: int) -> Mapping[str, str]:
        """Return the environment of a process, or the part of it that matters here.

        Raises:
            OSError: it is gone, may not be read, or does not answer in time.
        """
        ...

    async def podresources(self) -> bytes:
        """Return the kubelet's answer to ``List``: a serialised ``v1.ListPodResourcesResponse``.

        Raises:
            OSError: there is no kubelet, it may not be asked, or does not answer in time.
        """
        ...

    async def pod_exists(self, namespace: str, name: str) -> bool | None:
        """Return whether the kubelet knows a pod (``Get``); None where it cannot be asked that."""
        ...


class Direct:
    """Reads and asks itself."""

    def __init__(self, proc: Path = Path("/proc"), kubelet_socket: Path = KUBELET_SOCKET) -> None:
        self._proc = proc
        self._kubelet_socket = kubelet_socket
        self._worker: _Worker | None = None
        self._lost = 0
        self._can_get = True

    def environ(self, pid: int) -> Mapping[str, str]:
        if self._lost >= _THREADS_LOST_MAX:
            raise TimeoutError(errno.ETIMEDOUT, "too many processes whose environment hangs")
        worker = self._worker = self._worker or _Worker()
        try:
            data = worker.read(self._proc / str(pid) / "environ")
        except TimeoutError:
            self._worker, self._lost = None, self._lost + 1
            raise
        entries = (entry.partition("=") for entry in data.decode(errors="replace").split("\0"))
        return {name: value for name, _, value in entries}

    async def podresources(self) -> bytes:
        return await self._call("List", b"")

    async def pod_exists(self, namespace: str, name: str) -> bool | None:
        if not self._can_get:
            return None
        request = message("GetPodResourcesRequest")(pod_name=name, pod_namespace=namespace)
        try:
            await self._call("Get", request.SerializeToString())
        except FileNotFoundError:
            return False
        except NotImplementedError:
            self._can_get = False
            return None
        except OSError:
            return None
        return True

    async def _call(self, method: str, request: bytes) -> bytes:
        if not self._kubelet_socket.exists():
            raise ConnectionError(errno.ENOENT, f"{self._kubelet_socket}: no such socket")
        try:
            return await channel.ask(
                self._kubelet_socket, _SERVICE + method, request, seconds_max=_KUBELET_SECONDS_MAX
            )
        except channel.Refusal as exc:
            text = f"kubelet: {exc.status.name.lower()}: {exc.message}"[:300]
            if exc.status is channel.Status.UNIMPLEMENTED:
                raise NotImplementedError(text) from exc
            if exc.status is channel.Status.NOT_FOUND:
                raise FileNotFoundError(errno.ENOENT, text) from exc
            raise ConnectionError(errno.ECONNREFUSED, text) from exc
        except (*channel.BROKEN, TimeoutError) as exc:
            text = f"kubelet: {type(exc).__name__}: {exc}"[:300]
            raise ConnectionError(errno.ECONNREFUSED, text) from exc


class _Worker:
    """A thread that reads files, so that one that hangs costs a deadline."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="environ", daemon=True).start()

    def read(self, path: Path) -> bytes:
        self._wanted.put(path)
        try:
            found = self._found.get(timeout=_ENVIRON_SECONDS_MAX)
        except queue.Empty:
            raise TimeoutError(errno.ETIMEDOUT, f"{path}: does not answer") from None
        if isinstance(found, OSError):
            raise found
        return found

    def _run(self) -> None:
        while True:
            path = self._wanted.get()
            try:
                with path.open("rb") as file:
                    self._found.put(file.read(ENVIRON_BYTES_MAX))
            except OSError as exc:
                self._found.put(exc)


class Helper:
    """Asks the root helper."""

    def __init__(self, path: Path = HELPER_SOCKET) -> None:
        self.path = path

    def environ(self, pid: int) -> Mapping[str, str]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ENVIRON_SECONDS_MAX)
            connection.connect(str(self.path))
            connection.sendall(msgspec.json.encode({"ask": "environ", "pid": pid}) + b"\n")
            with connection.makefile("rb") as file:
                found = _answer(file.readline(ENVIRON_BYTES_MAX)).get("environ")
        if not isinstance(found, dict):
            raise OSError(errno.EBADMSG, "the helper's answer has no environment")
        return {str(name): str(value) for name, value in found.items()}

    async def podresources(self) -> bytes:
        async with asyncio.timeout(_KUBELET_SECONDS_MAX):
            reader, writer = await asyncio.open_unix_connection(
                str(self.path), limit=2 * channel.ANSWER_BYTES_MAX
            )
            try:
                writer.write(b'{"ask": "podresources"}\n')
                await writer.drain()
                line = await reader.readline()
            except ValueError as exc:
                raise OSError(errno.EMSGSIZE, "the helper's answer is too long") from exc
            finally:
                writer.close()
        try:
            return base64.b64decode(_answer(line)["list"], validate=True)
        except (KeyError, TypeError, ValueError) as exc:
            raise OSError(errno.EBADMSG, "the helper's answer has no list") from exc

    async def pod_exists(self, namespace: str, name: str) -> bool | None:
        return None


def _answer(line: bytes) -> dict[str, Any]:
    """Return the object of an answer.

    Raises:
        OSError: the helper refused, or what it says makes no sense.
    """
    try:
        answer = msgspec.json.decode(line)
    except msgspec.DecodeError as exc:
        raise OSError(errno.EBADMSG, f"the helper's answer is not JSON: {exc}") from exc
    if not isinstance(answer, dict) or answer.get("ok") is not True:
        text = answer.get("error") if isinstance(answer, dict) else None
        raise OSError(errno.EPERM, f"the helper refuses: {text}"[:300])
    return answer


class Either:
    """Directly where that is allowed, else by the helper where there is one."""

    def __init__(self, direct: Access, helper: Helper) -> None:
        self._direct = direct
        self._helper = helper

    def environ(self, pid: int) -> Mapping[str, str]:
        try:
            return self._direct.environ(pid)
        except PermissionError:
            if not self._helper.path.exists():
                raise
        return self._helper.environ(pid)

    async def podresources(self) -> bytes:
        try:
            return await self._direct.podresources()
        except OSError:
            if not self._helper.path.exists():
                raise
        return await self._helper.podresources()

    async def pod_exists(self, namespace: str, name: str) -> bool | None:
        return await self._direct.pod_exists(namespace, name)
