"""Golden hashes that this host's cards have agreed on, kept beside the spool."""

from __future__ import annotations

from pathlib import Path

import msgspec

from flopwatch_agent.probing.files import write_whole
from flopwatch_kernels.goldens import FILE_NAME, Goldens, added, judged, seen
from flopwatch_kernels.messages import ProbeResult
from flopwatch_proto.errors import UsageError


def screened(directory: Path, result: ProbeResult) -> ProbeResult:
    """Judge a screen's hash by those of a data directory, and keep it there.

    Raises:
        UsageError: the directory cannot be written, or its file is something else.
    """
    found = seen(result)
    if found is None:
        return result
    path = directory / FILE_NAME
    try:
        known = msgspec.json.decode(path.read_bytes(), type=Goldens).goldens
    except FileNotFoundError:
        known = ()
    except (OSError, msgspec.DecodeError) as exc:
        raise UsageError(f"{path}: not a file of golden hashes: {exc}") from exc
    content = msgspec.json.encode(Goldens(goldens=added(known, found)))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(content))
    except OSError as exc:
        raise UsageError(f"{path}: cannot be written: {exc.strerror}") from exc
    return judged(result, known)
