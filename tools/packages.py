"""Builds the packages that fleets install: ``packages.py [--fast] [--only NAME] DIRECTORY``.

    flopwatch             what a GPU node needs: interpreter, agent, command line, units
    flopwatch-collector   what the collector needs beside that: stores, web, its unit

Each as a .deb and as an .rpm with the same files. They bring their own Python below /opt/flopwatch, so that
the host's does not matter; of the host they need glibc and the C++ runtime.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

import interpreter

ROOT: Final = Path(__file__).resolve().parent.parent
SOURCES: Final = ROOT / "deploy/packages"
HOME: Final = "opt/flopwatch"
LIBRARY: Final = f"{HOME}/lib/python{sys.version_info.major}.{sys.version_info.minor}"
COMMANDS: Final = {"flopwatch": "flopwatch", "flopwatch-privileged": "flopwatch_agent.privileged"}
"""Command → module, as pyproject.toml has them."""

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's word for a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package, as .deb and .rpm.

    Attributes:
        units: every unit in it.
        config: name of its configuration file.
        extras: of the distribution, whose requirements it brings; the agent's package brings the rest.
    """

    name: str
    summary: str
    units: tuple[str, ...]
    config: str
    extras: frozenset[str]


AGENT: Final = Package(
    name="flopwatch",
    summary="Measures what every GPU of a fleet does: the agent of a node",
    units=(
        "flopwatch-agent.service",
        "flopwatch-privileged.socket",
        "flopwatch-privileged.service",
        "flopwatch-probe@.service",
        "flopwatch-probe.path",
    ),
    config="agent.toml",
    extras=frozenset(),
)
COLLECTOR: Final = Package(
    name="flopwatch-collector",
    summary="Stores what agents measured, accounts for every lost FLOP, pages",
    units=("flopwatch-collector.service",),
    config="collector.toml",
    extras=frozenset({"collector"}),
)
PACKAGES: Final = (AGENT, COLLECTOR)


def project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def version() -> str:
    """Return the version of everything that is built."""
    found: str = project()["project"]["version"]
    return found


def distributions(extras: frozenset[str]) -> set[str]:
    """Return the installed distributions that flopwatch with these extras needs, itself left out."""
    found: set[tuple[str, str]] = set()
    todo = [("flopwatch", extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                key = wanted.name.lower().replace("_", "-")
                todo += [(key, ""), *((key, more) for more in wanted.extras)]
    return {name for name, _ in found} - {"flopwatch"}


def copy_distribution(name: str, library: Path) -> None:
    """Copy what pip installed of a distribution; its scripts and caches stay behind."""
    for file in importlib.metadata.files(name) or ():
        if ".." in file.parts or "__pycache__" in file.parts or file.name == "direct_url.json":
            continue
        target = library / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.locate(), target)


def copy_flopwatch(library: Path) -> None:
    """Copy the project's own code, and what names its version."""
    wheel = project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(
            ROOT / package,
            library / Path(package).name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    own = library / f"flopwatch-{version()}.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(f"Metadata-Version: 2.1\nName: flopwatch\nVersion: {version()}\n")


def stage(package: Package, tree: Path) -> None:
    """Lay out everything that a package installs below ``tree``."""
    library = tree / LIBRARY
    library.mkdir(parents=True)
    brought = set() if package is AGENT else distributions(AGENT.extras)
    for name in distributions(package.extras) - brought:
        copy_distribution(name, library)
    if package is AGENT:
        copy_flopwatch(library)
        interpreter.copy_interpreter(tree / HOME, f"/{HOME}")
        for hook in sorted((ROOT / "deploy/slurm").glob("*.sh")):
            _install(hook, tree / f"usr/share/flopwatch/slurm/{hook.name}")
        _commands(tree)
    _bytecode(tree)
    _install(ROOT / "LICENSE", tree / f"usr/share/doc/{package.name}/copyright")
    _install(SOURCES / package.config, tree / f"etc/flopwatch/{package.config}")
    for unit in package.units:
        _install(ROOT / "systemd" / unit, tree / f"usr/lib/systemd/system/{unit}")
    for directory, _, files in os.walk(tree):
        Path(directory).chmod(0o755)
        for name in files:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(
                    0o755
                    if path.parent.name in ("bin", "slurm") or ".so" in path.suffixes
                    else 0o644
                )


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _commands(tree: Path) -> None:
    for command, module in COMMANDS.items():
        text = (SOURCES / "flopwatch.sh").read_text().replace("MODULE", module)
        (tree / HOME / "bin" / command).write_text(text)
        link = tree / "usr/bin" / command
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/{HOME}/bin/{command}")


def _bytecode(tree: Path) -> None:
    """Compile once, here: the daemons may write nothing there, and files never change."""
    compiling = [sys.executable, "-m", "compileall", "-q", "-j", "0"]
    lasting = ["--invalidation-mode", "unchecked-hash"]
    places = ["-s", str(tree), "-p", "/", str(tree / HOME)]
    subprocess.run([*compiling, *lasting, *places], check=True)


def script(name: str, package: Package) -> str:
    """Return a maintainer script's body for a package."""
    text = (SOURCES / f"{name}.sh").read_text()
    units = [unit for unit in package.units if "@" not in unit]
    services = [unit for unit in units if unit.endswith(".service")]
    return text.replace("UNITS", " ".join(units)).replace("SERVICES", " ".join(services))


def build_deb(package: Package, tree: Path, directory: Path, *, fast: bool) -> Path:
    """Return the .deb of a staged tree."""
    architecture = ARCHITECTURES[platform.machine()]
    depends = f"libc6 (>= {interpreter.glibc_needed(tree)}), libstdc++6, libgcc-s1"
    depends += "" if package is AGENT else f", {AGENT.name} (= {version()})"
    control = tree / "DEBIAN"
    control.mkdir()
    size = sum(path.lstat().st_size for path in tree.rglob("*") if not path.is_dir())
    (control / "control").write_text(
        f"Package: {package.name}\nVersion: {version()}\nArchitecture: {architecture}\n"
        f"Depends: {depends}\nInstalled-Size: {size // 1024}\nSection: admin\nPriority: optional\n"
        f"Maintainer: flopwatch\nDescription: {package.summary}\n"
    )
    (control / "conffiles").write_text(f"/etc/flopwatch/{package.config}\n")
    purge = f'if [ "$1" = purge ]; then\n{script("purge", package)}fi\n'
    for name, guard, text in (
        ("postinst", '[ "$1" = configure ] || exit 0\n', script("after-install", package)),
        ("prerm", '[ "$1" = remove ] || exit 0\n', script("before-removal", package)),
        ("postrm", "", script("after-removal", package) + (purge if package is AGENT else "")),
    ):
        (control / name).write_text(f"#!/bin/sh\nset -e\n{guard}{text}")
        (control / name).chmod(0o755)
    target = directory / f"{package.name}_{version()}_{architecture}.deb"
    pressed = ["-Zgzip", "-z1"] if fast else ["-Zxz"]
    command = ["dpkg-deb", "--root-owner-group", *pressed, "--build", str(tree), str(target)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(control)
    return target


def build_rpm(package: Package, tree: Path, directory: Path, *, fast: bool) -> Path:
    """Return the .rpm of a staged tree."""
    requires = f"glibc >= {interpreter.glibc_needed(tree)}, libstdc++, libgcc"
    requires += "" if package is AGENT else f", {AGENT.name} = {version()}"
    files = "\n".join(_owned(package, tree))
    spec = directory / f"{package.name}.spec"
    spec.write_text(
        f"Name: {package.name}\nVersion: {version()}\nRelease: 1\nSummary: {package.summary}\n"
        f"License: Apache-2.0\nAutoReqProv: no\nRequires: {requires}\n"
        f"%description\n{package.summary}.\n"
        f"%post\n{script('after-install', package)}"
        f'%preun\n[ "$1" = 0 ] || exit 0\n{script("before-removal", package)}'
        f"%postun\n{script('after-removal', package)}"
        f"%files\n%defattr(-,root,root)\n{files}\n"
    )
    defined = {
        "_topdir": directory / "rpmbuild",
        "_rpmdir": directory,
        "_rpmfilename": f"{package.name}-{version()}-1.{platform.machine()}.rpm",
        "_binary_payload": "w1.gzdio" if fast else "w7.xzdio",
        # The tree is finished: nothing is to be emptied, stripped, compiled or linked.
        "__spec_install_pre": "%{___build_pre}",
        "__os_install_post": "%{nil}",
        "_build_id_links": "none",
        "debug_package": "%{nil}",
    }
    defines = [word for key, value in defined.items() for word in ("--define", f"{key} {value}")]
    command = ["rpmbuild", "--quiet", "-bb", "--buildroot", str(tree), *defines, str(spec)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    spec.unlink()
    shutil.rmtree(directory / "rpmbuild")
    return directory / str(defined["_rpmfilename"])


def _owned(package: Package, tree: Path) -> Iterator[str]:
    """Yield the lines of %files: directories that are ours alone, and single files elsewhere."""
    yield f"%dir /{HOME}"
    yield "%dir /etc/flopwatch"
    yield f"%config(noreplace) /etc/flopwatch/{package.config}"
    yield f"/usr/share/doc/{package.name}"
    for top in ("usr/bin", "usr/lib/systemd/system", "usr/share/flopwatch"):
        if (tree / top).exists():
            yield from (f"/{path.relative_to(tree)}" for path in sorted((tree / top).iterdir()))
    yield from (f'"/{path.relative_to(tree)}"' for path in sorted((tree / HOME).iterdir()))


def main(argv: list[str] | None = None) -> int:
    """Build the packages and say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--fast", action="store_true", help="larger files, sooner")
    parser.add_argument("--only", choices=[package.name for package in PACKAGES])
    flags = parser.parse_args(argv)
    directory = flags.directory.absolute()
    for package in PACKAGES:
        if flags.only in (None, package.name):
            tree = directory / "tree" / package.name
            shutil.rmtree(tree, ignore_errors=True)
            stage(package, tree)
            for build in (build_deb, build_rpm):
                sys.stdout.write(f"{build(package, tree, directory, fast=flags.fast)}\n")
            shutil.rmtree(tree, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
