"""Golden hashes that this host's cards have agreed on, kept beside the spool."""

from __future__ import annotations

from pathlib import Path

from flopwatch_agent.probing.kept import Kept
from flopwatch_kernels.goldens import FILE_NAME, Goldens, added, judged, seen
from flopwatch_kernels.messages import ProbeResult


def screened(directory: Path, result: ProbeResult) -> ProbeResult:
    """Judge a screen's hash by those of a data directory, and keep it there.

    Raises:
        UsageError: the directory cannot be written, or its file is something else.
    """
    found = seen(result)
    if found is None:
        return result
    kept = Kept(directory / FILE_NAME, Goldens, "golden hashes")
    known = kept.read().goldens
    kept.write(Goldens(goldens=added(known, found)))
    return judged(result, known)
