"""The packages, built; the .deb installed on a root of glibc and a shell, its agent run, all removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

import interpreter
import packages
from processes import Process, await_readings

ROOT: Final = Path(__file__).resolve().parents[2]
SEARCHED: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
"""dpkg looks for its tools there; what it installs sees none of it."""


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, env=SEARCHED).stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    deb: Path
    rpm: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("built")
    script = ROOT / "tools/packages.py"
    done = subprocess.run(
        [sys.executable, script, "--fast", "--only", "flopwatch", directory],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    deb, rpm = done.stdout.split()
    return Built(deb=Path(deb), rpm=Path(rpm))


class Host:
    """A root directory with glibc, the C++ runtime, a shell and dpkg's word for them; no Python."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        for name in ("dev", "proc", "tmp", "run/systemd/system", "var/log"):
            (root / name).mkdir(parents=True)
        for name in ("sh", "rm", "rmdir", "env"):
            self._bring(Path(shutil.which(name) or name))
        grpc = find_spec("grpc._cython.cygrpc")
        assert grpc is not None
        assert grpc.origin is not None
        self._bring_libraries(Path(grpc.origin))
        libc = next((root / "usr/lib").rglob("libc.so.6")).relative_to(root)
        for library in (Path("/") / libc).parent.iterdir():
            if interpreter.THE_HOSTS.match(library.name) and library.name.count(".so.") == 1:
                shutil.copy(library, root / libc.parent / library.name)
        systemctl = root / "usr/bin/systemctl"
        systemctl.write_text('#!/bin/sh\necho "$@" >> /var/log/systemctl\n')
        systemctl.chmod(0o755)
        database = root / "var/lib/dpkg"
        for name in ("info", "updates", "triggers"):
            (database / name).mkdir(parents=True)
        (database / "status").write_text(output("dpkg", "-s", "libc6", "libstdc++6", "libgcc-s1"))

    def _bring(self, binary: Path) -> None:
        shutil.copy(binary.resolve(), self.root / "usr/bin" / binary.name)
        self._bring_libraries(binary)

    def _bring_libraries(self, file: Path) -> None:
        for place in re.findall(r"(/\S+\.so\S*) \(0x", output("ldd", file)):
            target = self.root / place.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(place).resolve(), target)

    def dpkg(self, *arguments: str | Path) -> str:
        return output("dpkg", f"--root={self.root}", *arguments)

    def command(self, *command: str) -> tuple[str, ...]:
        """What runs a command in this root, with its own /proc and nothing in its environment."""
        script = (
            'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
        )
        unshare, sh = (shutil.which(name) or name for name in ("unshare", "sh"))
        return (
            *(unshare, "--mount", "--propagation", "private", sh, "-c", script, str(self.root)),
            *("/usr/bin/env", "-i", *command),
        )

    def said(self, *command: str) -> str:
        done = subprocess.run(self.command(*command), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def files(self) -> set[str]:
        """Everything there is, but for what dpkg and systemctl write down themselves."""
        found = (path.relative_to(self.root) for path in self.root.rglob("*"))
        return {str(p) for p in found if not str(p).startswith(("var/lib/dpkg/", "var/log/"))}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def before(host: Host) -> set[str]:
    return host.files()


@pytest.fixture(scope="module")
def installed(host: Host, built: Built, before: set[str]) -> Iterator[Host]:
    host.dpkg("--install", built.deb)
    yield host
    shutil.rmtree(host.root)


def test_it_answers_where_there_is_no_python_and_hears_nothing_of_the_hosts(
    installed: Host,
) -> None:
    assert not [path for path in installed.files() if re.search(r"usr/s?bin/.*python", path)]
    expected = f"flopwatch {packages.version()}\n"
    assert installed.said("/usr/bin/flopwatch", "--version") == expected
    assert installed.said("/usr/bin/flopwatch", "agent", "--version") == expected
    poison = installed.root / "tmp/poison/lib/python3.11/site-packages"
    poison.mkdir(parents=True)
    for module in ("json", "typing", "sitecustomize", "usercustomize", "flopwatch", "msgspec"):
        (poison / f"{module}.py").write_text('raise SystemExit("poison")\n')
    lure = "/tmp/poison/lib/python3.11/site-packages"
    hostile = (f"PYTHONPATH={lure}", "PYTHONHOME=/tmp/poison", "PYTHONUSERBASE=/tmp/poison")
    inside = ("/usr/bin/env", f"--chdir={lure}", *hostile, "/usr/bin/flopwatch")
    assert installed.said(*inside, "--version") == expected
    assert "B100" in installed.said(*inside, "peaks", "NVIDIA B100")
    shutil.rmtree(installed.root / "tmp/poison")


def test_every_import_comes_from_the_package(installed: Host) -> None:
    path = installed.said("/opt/flopwatch/bin/python3", "-I", "-c", "import sys; print(*sys.path)")
    assert all(entry.startswith("/opt/flopwatch/lib/") for entry in path.split())


def test_the_agent_measures_and_serves_its_metrics(installed: Host, tmp_path: Path) -> None:
    config = installed.root / "etc/flopwatch/agent.toml"
    config.write_text(
        config.read_text()
        + 'cluster = "packaged"\n[jobs]\nsocket = "/var/lib/flopwatch/jobs.sock"\n'
        + '[metrics]\nlisten = "127.0.0.1:0"\n'
    )
    agent = Process(installed.command("/usr/bin/flopwatch", "agent"), tmp_path / "log", {})
    try:
        await_readings(agent, "processor")
        assert agent.end() == 0, agent.said()
    finally:
        agent.end()
    assert "packaged" in agent.said()


def test_the_units_start_what_is_installed(installed: Host) -> None:
    units = sorted((installed.root / "usr/lib/systemd/system").iterdir())
    assert {unit.name for unit in units} == set(packages.AGENT.units)
    for unit in units:
        for command in re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.M):
            link = installed.root / command.lstrip("/")
            assert (installed.root / os.readlink(link).lstrip("/")).exists()
    log = (installed.root / "var/log/systemctl").read_text().splitlines()
    assert log == [
        "daemon-reload",
        "is-active --quiet flopwatch-agent.service",
        "reload-or-restart flopwatch-agent.service",
        "is-active --quiet flopwatch-privileged.service",
        "reload-or-restart flopwatch-privileged.service",
    ]


def test_the_slurm_hooks_lie_where_they_say(installed: Host) -> None:
    hooks = sorted((ROOT / "deploy/slurm").glob("*.sh"))
    assert hooks
    for hook in hooks:
        place = f"usr/share/flopwatch/slurm/{hook.name}"
        assert f"/{place}" in hook.read_text()
        assert os.access(installed.root / place, os.X_OK)


def test_what_is_purged_leaves_nothing(installed: Host, before: set[str]) -> None:
    (installed.root / "etc/flopwatch/probing.enabled").touch()
    installed.dpkg("--purge", "flopwatch")
    assert installed.files() == before
    log = (installed.root / "var/log/systemctl").read_text().splitlines()
    assert "disable --now flopwatch-agent.service flopwatch-privileged.socket" in log[5]


def test_the_rpm_holds_the_same_files_and_says_what_it_needs(built: Built) -> None:
    listed = output("dpkg-deb", "--contents", built.deb).splitlines()
    deb = {
        line.split(maxsplit=5)[5].partition(" -> ")[0].lstrip(".")
        for line in listed
        if not line.startswith("d")
    }
    dump = output("rpm", "-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\n]", built.rpm)
    files = dict(line.split(maxsplit=1)[::-1] for line in dump.splitlines())
    assert {name for name, mode in files.items() if not mode.startswith("d")} == deb
    needs = output("rpm", "-qp", "--requires", built.rpm).splitlines()
    theirs = {line for line in needs if not line.startswith(("rpmlib(", "/bin/sh"))}
    glibc = re.search(r"libc6 \(>= ([\d.]+)\)", output("dpkg-deb", "-f", built.deb, "Depends"))
    assert glibc is not None
    assert theirs == {f"glibc >= {glibc[1]}", "libstdc++", "libgcc"}


def test_the_collectors_package_adds_to_the_agents_and_repeats_nothing() -> None:
    agent = packages.distributions(packages.AGENT.extras)
    collector = packages.distributions(packages.COLLECTOR.extras)
    assert {"grpclib", "msgspec", "nvidia-ml-py"} <= agent < collector
    assert {"chdb", "fastapi", "grpcio", "sqlalchemy"} <= collector - agent
    assert not {"torch", "pytest", "numpy", "chdb"} & agent


def test_every_unit_is_in_a_package() -> None:
    shipped = [unit for package in packages.PACKAGES for unit in package.units]
    assert sorted(shipped) == sorted(path.name for path in (ROOT / "systemd").iterdir())


def test_the_commands_are_those_of_the_distribution() -> None:
    scripts = packages.project()["project"]["scripts"]
    modules = {name: target.partition(":")[0] for name, target in scripts.items()}
    assert {name: m.removesuffix(".__main__") for name, m in modules.items()} == packages.COMMANDS
