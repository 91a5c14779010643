"""What a prolog script leaves behind: one JSON file per job, removed by the epilog (`deploy/slurm/`).

    {"job": "81", "user": "ada", "account": "pre", "partition": "h100", "gpus": "0,1,2"}

``gpus`` counts as SLURM_JOB_GPUS does (`gres`); a site's own script may write ``minors`` or ``uuids``
instead, which are taken first. Numbers may be written as texts, empty texts are not said. Files appear
whole (written under another name, then renamed); one that makes no sense is told once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import msgspec

from flopwatch_agent.allocation.holders import GRES, MINOR, UUID, Place

_FILES_MAX: Final = 1_024
_BYTES_MAX: Final = 64 * 1024
_NUMBERS: Final = re.compile(r"\d{1,4}(?:-\d{1,4})?")


class PrologJob(msgspec.Struct, frozen=True, kw_only=True):
    """One file. Unknown keys are left to others.

    Attributes:
        job: Slurm's number of it. sluid: its name in control groups from Slurm 26.05 on.
        node: the node's name in Slurm.
        gpus, minors: numbers with commas and ranges, ``0,2-3``; None: not said.
        uuids: of cards or MIG devices, with commas.
    """

    job: str | int
    sluid: str = ""
    node: str = ""
    user: str = ""
    account: str = ""
    partition: str = ""
    qos: str = ""
    restarts: str | int = 0
    gpus: str | None = None
    minors: str | None = None
    uuids: str | None = None

    def places(self) -> tuple[Place, ...]:
        """Return the cards of the job."""
        if self.uuids:
            names = (name.strip().lower() for name in self.uuids.split(","))
            return tuple(Place(UUID, name) for name in names if name)
        if self.minors:
            return tuple(Place(MINOR, number) for number in numbers(self.minors))
        return tuple(Place(GRES, number) for number in numbers(self.gpus or ""))


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers that ``0,2-3`` stands for; parts that are none are left out."""
    found: list[int] = []
    for part in text.split(","):
        if _NUMBERS.fullmatch(part.strip()):
            first, _, last = part.strip().partition("-")
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def read_prolog(directory: Path, node: str | None) -> tuple[dict[str, PrologJob], dict[str, str]]:
    """Return the jobs by number, and what is wrong with other files by their name.

    Args:
        node: the node's name in Slurm, where several run on this host; None takes all.

    Raises:
        OSError: the directory is there and cannot be listed.
    """
    jobs: dict[str, PrologJob] = {}
    wrong: dict[str, str] = {}
    try:
        paths = sorted(directory.glob("*.json"))[:_FILES_MAX]
    except FileNotFoundError:
        return jobs, wrong
    for path in paths:
        try:
            with path.open("rb") as file:
                job = msgspec.json.decode(file.read(_BYTES_MAX), type=PrologJob)
        except FileNotFoundError:
            continue  # the epilog was here
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as exc:
            wrong[path.name] = str(exc)
            continue
        if node is None or job.node in ("", node):
            jobs[str(job.job)] = job
    return jobs, wrong
