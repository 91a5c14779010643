"""Runs a command as a unit would: ``python sandbox.py UNIT STATE_DIRECTORY COMMAND…``, as root.

What the unit says is done by the kernel, as systemd does it: the system-call filter, the capabilities that
are left and no new ones, no memory both writable and executable, a root that is read-only but for ``/tmp``
and the state directory, ``/proc`` with processes alone. What the kernel refuses ends this with a traceback.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_MDWE: Final = 65
MDWE_REFUSE_EXEC_GAIN: Final = 1
CAPABILITIES: Final = {"CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19}
SCMP_ALLOW: Final = 0x7FFF0000
SCMP_ERRNO_EPERM: Final = 0x00050000 | errno.EPERM

libc: Final = ctypes.CDLL(None, use_errno=True)


def settings(unit: Path) -> dict[str, list[str]]:
    """Every value that a unit gives a key, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def allowed_calls(filters: list[str]) -> set[str]:
    """The system calls that lines of ``SystemCallFilter=`` leave, by systemd's own sets."""
    dump = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True
    ).stdout
    sets: dict[str, set[str]] = {}
    for line in dump.splitlines():
        if line.startswith("@"):
            members = sets[line.strip()] = set()
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.add(line.strip())

    def expanded(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return set().union(*(expanded(member) for member in sets[name]))

    allowed = expanded("@default")
    for line in filters:
        named = set().union(*(expanded(name) for name in line.lstrip("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def prctl(option: int, argument: int) -> None:
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def filter_calls(allowed: set[str]) -> None:
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(SCMP_ERRNO_EPERM))
    for name in sorted(allowed):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            seccomp.seccomp_rule_add(context, SCMP_ALLOW, number, 0)
    if (code := seccomp.seccomp_load(context)) != 0:
        raise OSError(-code, "seccomp_load")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def enter(unit: dict[str, list[str]], state: str) -> None:
    """Put this process where the unit would. The caller is in a mount namespace of its own."""
    last_capability = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    if unit["ProtectSystem"] == ["strict"]:
        for writable in ("/tmp", state):  # PrivateTmp= gives a writable one too
            mount("--bind", writable, writable)
        mount("-o", "remount,bind,ro", "/")
    if unit.get("ProcSubset") == ["pid"]:
        mount("-t", "proc", "-o", "subset=pid,hidepid=invisible", "proc", "/proc")
    allowed = allowed_calls(unit["SystemCallFilter"])
    kept = {CAPABILITIES[name] for name in unit["CapabilityBoundingSet"][0].split()}
    for capability in set(range(last_capability + 1)) - kept:
        prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        prctl(PR_SET_MDWE, MDWE_REFUSE_EXEC_GAIN)
    filter_calls(allowed)
    os.umask(int(unit["UMask"][0], 8))


if __name__ == "__main__":
    enter(settings(Path(sys.argv[1])), sys.argv[2])
    os.execvp(sys.argv[3], sys.argv[3:])
