"""What this machine lets the tests do. What cannot be run here is not collected, and the summary says so.

Only what a kernel or a container refuses counts: a program that is not installed is a failure of `make test`,
which installs it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")
_NVIDIA_MAJOR: Final = 195


def refused(tests: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files and directories of tests that cannot be run on this machine, with the reason."""
    for check, needing in _NEEDED_BY.items():
        try:
            check()
        except OSError as exc:
            for name in needing:
                yield tests / name, str(exc)


def _device_nodes_and_groups() -> None:
    """Make a device node and control groups, as a Slurm with fake cards does."""
    with tempfile.TemporaryDirectory() as scratch:
        node = os.path.join(scratch, "gpu0")
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(_NVIDIA_MAJOR, 0))
    for controller in ("devices", "freezer"):
        group = _CGROUP / controller / f"flopwatch_test_{os.getpid()}"
        group.mkdir()
        group.rmdir()


def _mounts() -> None:
    """Mount in a namespace of one's own, as a systemd unit's sandbox does."""
    script = "mount -t proc -o subset=pid,hidepid=invisible proc /proc"
    _inside("--mount", script, "--propagation", "private")


def _links() -> None:
    """Join two network namespaces by a link, and take it down."""
    script = "ip link add fwtest0 type veth peer name fwtest1 netns $$ && ip link set fwtest0 down"
    _inside("--net", script)


def _disks() -> None:
    """Mount small disks: of memory, and of a file."""
    script = (
        "d=$(mktemp -d) && mount -t tmpfs tmpfs $d && truncate -s 1M $d/f && mkfs.ext4 -q $d/f "
        "&& mkdir $d/m && mount -o loop $d/f $d/m; code=$?; umount $d/m $d; rmdir $d; exit $code"
    )
    _inside("--mount", script, "--propagation", "private")


def _inside(namespace: str, script: str, *more: str) -> None:
    command = ("unshare", namespace, *more, "sh", "-c", script)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())


_NEEDED_BY: Final[dict[Callable[[], None], tuple[str, ...]]] = {
    _device_nodes_and_groups: ("slurm",),
    _mounts: (
        "packages/test_packages.py",
        "systemd/test_privileged.py",
        "systemd/test_units_run.py",
    ),
    _links: ("campaign/test_cut.py",),
    _disks: ("campaign/test_disks.py",),
}
