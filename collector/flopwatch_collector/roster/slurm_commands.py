"""Slurm asked with its own commands, which must be on this host. I/O.

Nodes come from ``scontrol show nodes --json`` (23.02 and newer; its ``sinfo --json`` lists groups of nodes),
before that from ``sinfo --json``. A command has a deadline and a bound on its answer. Its environment is
our own without the variables that change what the commands print.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flopwatch_collector.roster.answers import Answers, NotAnsweredError

ANSWER_BYTES_MAX: Final = 256 * 1024**2
CONFIGURED: Final = (
    "/etc/slurm/slurm.conf",
    "/etc/slurm-llnl/slurm.conf",
    "/run/slurm/conf/slurm.conf",
)
"""Where a slurm.conf lies on a host of a cluster; the last one is fetched by a slurmd without a file."""

_SETTINGS: Final = re.compile(r"^(\w+)\s*=\s*(.*?)\s*$", re.MULTILINE)
_CHANGES_OUTPUT: Final = ("SINFO_", "SQUEUE_", "SCONTROL_", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")


def configuration(environ: Mapping[str, str]) -> Path | None:
    """Return the slurm.conf that the commands of this host would read, if there is one."""
    named = environ.get("SLURM_CONF")
    places = (named,) if named else CONFIGURED
    return next((Path(place) for place in places if Path(place).is_file()), None)


def found(environ: Mapping[str, str]) -> bool:
    """Return whether this host belongs to a cluster: a configuration; a binary alone proves nothing."""
    return configuration(environ) is not None and all(
        shutil.which(name, path=environ.get("PATH")) for name in ("sinfo", "squeue", "scontrol")
    )


class SlurmCommands:
    """Asks Slurm with its commands.

    Args:
        deadline_seconds: of all commands of one question together.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, deadline_seconds: float = 30.0):
        self._environ = {
            name: text
            for name, text in (environ or os.environ).items()
            if not name.startswith(_CHANGES_OUTPUT)
        }
        self._deadline_seconds = deadline_seconds
        self._version: tuple[int, ...] = ()

    async def ask(self) -> Answers:
        """Return what Slurm says now.

        Raises:
            NotAnsweredError: it does not, not in time, or not what was asked for.
        """
        try:
            async with asyncio.timeout(self._deadline_seconds):
                return await self._ask()
        except TimeoutError:
            raise NotAnsweredError(f"no answer within {self._deadline_seconds:g} s") from None

    async def _ask(self) -> Answers:
        if not self._version:
            said = (await self._run("scontrol", "--version")).decode(errors="replace")
            self._version = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
        config = (await self._run("scontrol", "show", "config")).decode(errors="replace")
        settings = dict(_SETTINGS.findall(config))
        # Jobs first: one that starts in between is seen as used cards at worst, and asked for again.
        jobs = await self._run("squeue", "-a", "-t", "all", "--json")
        if self._version >= (23, 2):
            nodes = await self._run("scontrol", "-a", "show", "nodes", "--json")
        else:
            nodes = await self._run("sinfo", "-a", "--json")
        partitions = (await self._run("sinfo", "-a", "-h", "-o", "%R|%a")).decode(errors="replace")
        reserved = await self._run("scontrol", "-a", "-o", "show", "reservation")
        return Answers(
            cluster=settings.get("ClusterName", ""),
            version=".".join(str(part) for part in self._version),
            nodes=nodes,
            jobs=jobs,
            closed_partitions=frozenset(
                name
                for name, _, state in (line.partition("|") for line in partitions.splitlines())
                if name and state != "up"
            ),
            reservations=reserved.decode(errors="replace"),
            private_data=frozenset(
                part for part in settings.get("PrivateData", "none").split(",") if part != "none"
            ),
        )

    async def _run(self, *command: str) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=self._environ,
            )
        except OSError as exc:
            raise NotAnsweredError(f"{command[0]} cannot be run: {exc.strerror}") from exc
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            said, complaint = await asyncio.gather(
                _bounded(process.stdout, command[0]), _bounded(process.stderr, command[0])
            )
            code = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if code:
            lines = complaint.decode(errors="replace").strip().splitlines()
            raise NotAnsweredError(lines[-1][:300] if lines else f"{command[0]} ended with {code}")
        return said


async def _bounded(stream: asyncio.StreamReader, name: str) -> bytes:
    parts = bytearray()
    while part := await stream.read(1 << 16):
        parts += part
        if len(parts) > ANSWER_BYTES_MAX:
            raise NotAnsweredError(f"{name} says more than {ANSWER_BYTES_MAX // 1024**2} MiB")
    return bytes(parts)
