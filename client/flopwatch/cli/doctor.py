"""`doctor`: what works on this host, what does not, and what to do about it."""

from __future__ import annotations

import importlib.util
import json as json_module
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import httpx
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flopwatch.api import DEFAULT_URL
from flopwatch.cli import doctor_slurm, doctor_trust, host
from flopwatch.cli.options import Json
from flopwatch_agent.allocation import doctor as allocation_doctor
from flopwatch_agent.config import load_config

State = Literal["ok", "info", "failed"]

_CHILD_SECONDS_MAX: Final = 20.0
_CLOCK_SECONDS_MAX: Final = 2.0
_NVML_CHILD: Final = """
import json, pynvml
said = {}
try:
    pynvml.nvmlInit()
    said["driver"] = pynvml.nvmlSystemGetDriverVersion()
    said["cards"] = pynvml.nvmlDeviceGetCount()
    if said["cards"]:
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        said["sku"] = pynvml.nvmlDeviceGetName(handle)
        try:
            said["gpm"] = bool(pynvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
        except (pynvml.NVMLError, AttributeError) as exc:
            said["gpm_error"] = str(exc)
except pynvml.NVMLError as exc:
    said["error"] = str(exc)
print(json.dumps(said))
"""
"""Run in a child: a driver that hangs costs the doctor a deadline, nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: ``failed`` is something that should work here and does not; ``info`` is a fact.
        advice: what to do about it; None where nothing is to be done.
    """

    name: str
    state: State
    text: str
    advice: str | None = None


def doctor(
    api: Annotated[
        str | None,
        typer.Option(
            "--api", envvar="FLOPWATCH_API", metavar="URL", help="A collector that should answer."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The data directory to look at.")
    ] = None,
    json: Json = False,
) -> int:
    """What works on this host, what does not, and what to do about it."""
    directory = data or host.data_directory()
    findings = [
        *cards(os.environ, ask_nvml),
        torch(),
        writable(directory),
        *collector(api or DEFAULT_URL, expected=api is not None),
        *_findings(doctor_trust.certificate(os.environ)),
        *rights(os.environ),
        *_findings(doctor_slurm.slurm(os.environ)),
    ]
    healthy = all(finding.state != "failed" for finding in findings)
    if json:
        listed = [asdict(finding) for finding in findings]
        typer.echo(json_module.dumps({"healthy": healthy, "findings": listed}, indent=2))
    else:
        Console(highlight=False).print(_table(findings))
    return 0 if healthy else 1


def cards(
    environ: Mapping[str, str],
    ask_nvml: Callable[[], Mapping[str, object]],
    root: Path = Path("/"),
) -> list[Finding]:
    """Driver, NVML library, cards, GPM and the right to read them."""
    if not host.has_accelerator(environ, root):
        return [Finding(name="driver", state="info", text="no NVIDIA driver: no accelerator here")]
    version = host.driver_version(root)
    findings = [Finding(name="driver", state="ok", text=version or "found")]
    library = host.nvml_library(environ, root)
    if library is None:
        return [
            *findings,
            Finding(
                name="nvml",
                state="failed",
                text="libnvidia-ml.so.1 was not found",
                advice="install the driver's user-space libraries of the same version",
            ),
        ]
    said = ask_nvml()
    if "error" in said:
        advice = "reload the driver or reboot: library and kernel driver must match"
        return [
            *findings,
            Finding(name="nvml", state="failed", text=str(said["error"]), advice=advice),
        ]
    text = f"{said.get('cards', 0)} × {said.get('sku', 'card')}, driver {said.get('driver')}"
    findings.append(Finding(name="nvml", state="ok", text=text))
    if said.get("gpm"):
        findings.append(Finding(name="gpm", state="ok", text="tensor and SM activity are read"))
    else:
        findings.append(
            Finding(
                name="gpm",
                state="info",
                text="not supported here: Hopper or newer, and no MIG",
                advice="MFU is then known for jobs that declare it: import flopwatch",
            )
        )
    return [*findings, permissions(host.device_nodes(root))]


def permissions(nodes: tuple[Path, ...]) -> Finding:
    """Whether the cards' device files can be opened."""
    closed = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        return Finding(
            name="permissions",
            state="failed",
            text=f"cannot open {closed[0]}",
            advice="run as root, or allow the user to read and write /dev/nvidia*",
        )
    return Finding(name="permissions", state="ok", text=f"{len(nodes)} device files")


def torch() -> Finding:
    """Whether probes can run."""
    if importlib.util.find_spec("torch") is None:
        return Finding(
            name="torch",
            state="info",
            text="not installed: no probes",
            advice="pip install 'flopwatch[probes]'",
        )
    return Finding(name="torch", state="ok", text="probes can run")


def writable(directory: Path) -> Finding:
    """Whether the data directory, or the place where it would be made, can be written."""
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            name="data",
            state="failed",
            text=f"{directory} cannot be written",
            advice="pass --data DIR, or give this user the directory",
        )
    free_gib = shutil.disk_usage(there).free / 2**30
    return Finding(name="data", state="ok", text=f"{directory}: {free_gib:.0f} GiB free")


def collector(url: str, *, expected: bool) -> list[Finding]:
    """Whether a collector answers, and whether its clock agrees with this host's.

    Args:
        expected: somebody named it, so its silence is a failure; else this host may just have none.
    """
    try:
        response = httpx.get(f"{url.rstrip('/')}/readyz", timeout=5.0, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL):
        return [
            Finding(
                name="collector",
                state="failed" if expected else "info",
                text=f"cannot reach {url}",
                advice="start one: flopwatch up; or name another: --api URL",
            )
        ]
    ready = response.status_code == 200
    finding = Finding(
        name="collector",
        state="ok" if ready else "failed",
        text=f"{url} {'is ready' if ready else f'answers {response.status_code}'}",
        advice=None if ready else "its log names the part that does not serve",
    )
    dated = response.headers.get("date")
    if dated is None:
        return [finding]
    behind = time.time() - parsedate_to_datetime(dated).timestamp()
    # The header has whole seconds: up to one more is no disagreement.
    agrees = -_CLOCK_SECONDS_MAX <= behind <= _CLOCK_SECONDS_MAX + 1.0
    clock = Finding(
        name="clock",
        state="ok" if agrees else "failed",
        text="agrees with the collector's" if agrees else f"{behind:+.0f} s off the collector's",
        advice=None if agrees else "synchronise both hosts: chrony or systemd-timesyncd",
    )
    return [finding, clock]


def rights(environ: Mapping[str, str]) -> list[Finding]:
    """What the agent of this host can know of who holds its cards.

    Raises:
        UsageError: the agent's configuration is wrong.
    """
    states: dict[bool | None, State] = {True: "ok", False: "failed", None: "info"}
    found = allocation_doctor.doctor(load_config(None, environ))
    return [Finding(name=what, state=states[ok], text=text) for what, ok, text in found]


def _findings(facts: list[doctor_slurm.Fact]) -> list[Finding]:
    return [Finding(name=n, state=state, text=text, advice=a) for n, state, text, a in facts]


def ask_nvml() -> Mapping[str, object]:
    """What NVML says, asked in a child with a deadline."""
    try:
        done = subprocess.run(
            (sys.executable, "-c", _NVML_CHILD),
            capture_output=True,
            timeout=_CHILD_SECONDS_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"the driver did not answer within {_CHILD_SECONDS_MAX:.0f} s"}
    try:
        said: Mapping[str, object] = json_module.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return {"error": last[0] if last else "the NVML child said nothing"}
    return said


def _table(findings: list[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    for finding in findings:
        told = finding.text if finding.advice is None else f"{finding.text}\n→ {finding.advice}"
        table.add_row(finding.name, finding.state, told)
    return table
