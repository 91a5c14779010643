"""What the benchmarks share: the cost of a tree of processes, the machine, and where results go."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent
MEASURED: Final = ROOT / "docs/measured"
FLOPWATCH: Final = str(Path(sys.executable).with_name("flopwatch"))
READY_S_MAX: Final = 60.0
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Cost of one process up to now. Attributes: switches: times it gave up a core by itself."""

    cpu_seconds: float
    rss_bytes: int
    switches: int
    threads: int
    descriptors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one process over a span."""

    cpu_percent: float
    rss_mib: float
    wakeups_per_s: float
    threads: int

    @classmethod
    def between(cls, before: Usage, after: Usage, seconds: float) -> Cost:
        """Return the cost of a process whose usage was taken twice."""
        return cls(
            cpu_percent=round(100 * (after.cpu_seconds - before.cpu_seconds) / seconds, 2),
            rss_mib=round(after.rss_bytes / _MIB, 1),
            wakeups_per_s=round((after.switches - before.switches) / seconds, 1),
            threads=after.threads,
        )


def tree(pid: int) -> dict[int, Usage]:
    """Return the usage of a process and of everything below it, by pid."""
    root = psutil.Process(pid)
    found: dict[int, Usage] = {}
    for process in (root, *root.children(recursive=True)):
        try:
            times, memory = process.cpu_times(), process.memory_info()
            found[process.pid] = Usage(
                cpu_seconds=times.user + times.system,
                rss_bytes=memory.rss,
                switches=_switches(process.pid),
                threads=process.num_threads(),
                descriptors=process.num_fds(),
            )
        except psutil.NoSuchProcess:
            continue
    return found


def _switches(pid: int) -> int:
    """Return the voluntary context switches of all threads of a process."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            text = status.read_text(encoding="utf-8")
        except OSError:  # the thread has ended
            continue
        total += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


def costs(pid: int, seconds: float) -> dict[int, Cost]:
    """Watch a tree for some seconds; return the cost of each process that lived through them."""
    before, started = tree(pid), time.monotonic()
    time.sleep(seconds)
    after, lasted = tree(pid), time.monotonic() - started
    return {
        child: Cost.between(before[child], after[child], lasted)
        for child in after
        if child in before
    }


def total(parts: Iterable[Cost]) -> Cost:
    """Return what several processes cost together."""
    parts = list(parts)
    return Cost(
        cpu_percent=round(sum(part.cpu_percent for part in parts), 2),
        rss_mib=round(sum(part.rss_mib for part in parts), 1),
        wakeups_per_s=round(sum(part.wakeups_per_s for part in parts), 1),
        threads=sum(part.threads for part in parts),
    )


def machine() -> dict[str, Any]:
    """Return what the figures depend on; the load tells whether the machine was otherwise idle."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.split(": ")[1] for line in text.splitlines() if "model name" in line), "?")
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m_at_start": round(os.getloadavg()[0], 2),
    }


def write(
    name: str,
    title: str,
    command: str,
    on: Mapping[str, Any],
    result: Mapping[str, Any],
    remarks: Iterable[str],
) -> None:
    """Write ``docs/measured/NAME.json`` and ``.md``."""
    MEASURED.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    record = {"command": command, "date": date, "machine": on, "result": result}
    (MEASURED / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    where = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in on.items())
    lines = [
        f"# {title}",
        "",
        f"`{command}`, {date}; {where}.",
        "",
        "| figure | value |",
        "|---|---|",
    ]
    lines += [f"| {key} | {value} |" for key, value in _flat(result)]
    lines += ["", *(f"- {remark}" for remark in remarks)]
    (MEASURED / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


def _flat(tree_: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree_.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} · ")
        else:
            yield f"{prefix}{key}".replace("_", " "), value


class Running(NamedTuple):
    """A collector. Attributes: dashboard: its URL."""

    pid: int
    ingest: str
    dashboard: str


@asynccontextmanager
async def collecting(directory: Path) -> AsyncIterator[Running]:
    """Run a collector until its dashboard serves; ``collector.toml``, if there is one, configures it."""
    data = ["--data", str(directory / "data")]
    if (directory / "collector.toml").exists():
        data += ["--config", str(directory / "collector.toml")]
    listen = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with (directory / "collector.log").open(
        "wb"
    ) as log:  # it tells of every node that comes or goes
        process = await asyncio.create_subprocess_exec(
            *(FLOPWATCH, "collector", *data, *listen), stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    said: dict[str, str] = {}
    try:
        async with asyncio.timeout(READY_S_MAX):
            while not {"ingest", "dashboard"} <= said.keys():
                line = (await process.stdout.readline()).decode()
                if not line:
                    sys.exit((directory / "collector.log").read_text(encoding="utf-8"))
                name, _, value = line.strip().partition(" ")
                said[name] = value
        yield Running(process.pid, said["ingest"], said["dashboard"])
    finally:
        await ended(process)


async def ended(process: asyncio.subprocess.Process) -> None:
    """End a process: kindly, then not."""
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
    await process.wait()
