"""Results of probes on their way to the agent: a bounded folder of JSON files, one probe each.

Whoever probes writes; the agent of the host reads, and removes a file once what it says is in the spool. So a
result comes at least once, and the key of table `probe` makes it once. A file that makes no sense is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import structlog

from flopwatch_agent.probing.files import file_name, make_directory, write_whole
from flopwatch_proto.errors import UsageError
from flopwatch_proto.v1 import telemetry_pb2 as pb

DIRECTORY: Final = "probes"
FILES_MAX: Final = 512
FILE_BYTES_MAX: Final = 256 << 10
TAKEN_MAX: Final = 64
"""Taken at once: a payload has a bound of its own."""

_log = structlog.get_logger()

Outcome = Literal["ok", "failed", "aborted", "corrupt"]


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One probe; fields as in ``pb.Probe``. Attributes: result: all that was measured."""

    slot: str
    start_unix_ms: int
    kind: str
    outcome: Outcome = "ok"
    reason: str = ""
    dtype: str = ""
    sku: str = ""
    device_uuid: str = ""
    serial: str = ""
    driver_version: str = ""
    seconds: float = 0.0
    median_flops: float = 0.0
    p10_flops: float = 0.0
    p90_flops: float = 0.0
    sustained: bool = False
    median_value: float = 0.0
    p10_value: float = 0.0
    p90_value: float = 0.0
    unit: str = ""
    kappa: float | None = None
    result: dict[str, Any] = {}

    def message(self) -> pb.Probe:
        """Return the probe as it travels."""
        fields = msgspec.structs.asdict(self)
        result = fields.pop("result")
        if fields["kappa"] is None:
            del fields["kappa"]
        return pb.Probe(**fields, result_json=msgspec.json.encode(result).decode())


class Inbox:
    """The folder below an agent's data directory. Attributes: refused: files that made no sense."""

    def __init__(self, data: Path) -> None:
        self._directory = data / DIRECTORY
        self._taken: list[Path] = []
        self.refused = 0

    def put(self, record: Record) -> Path:
        """Leave a result for the agent; the oldest give way where there is no room.

        Raises:
            UsageError: it cannot be written.
        """
        words = (record.device_uuid or record.slot, record.kind, record.dtype or "any")
        name = f"{record.start_unix_ms:015}-{'-'.join(file_name(word) for word in words)}.json"
        path = self._directory / name
        try:
            make_directory(self._directory)
            there = self._files()
            for old in there[: max(0, len(there) - FILES_MAX + 1)]:
                old.unlink(missing_ok=True)
                _log.warning("probe_result_dropped", path=str(old), reason="the inbox is full")
            write_whole(path, msgspec.json.encode(record))
        except OSError as exc:
            raise UsageError(f"{path}: cannot be written: {exc.strerror}") from exc
        return path

    def take(self) -> Sequence[Record]:
        """Return the oldest results, at most `TAKEN_MAX`; they are removed by `kept`."""
        records = []
        self._taken = []
        for path in self._files()[:TAKEN_MAX]:
            try:
                if path.stat().st_size > FILE_BYTES_MAX:
                    raise ValueError(f"more than {FILE_BYTES_MAX} bytes")
                records.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except (OSError, ValueError) as exc:
                self.refused += 1
                _log.warning("probe_result_refused", path=str(path), reason=str(exc))
                path.unlink(missing_ok=True)
                continue
            self._taken.append(path)
        return records

    def kept(self) -> None:
        """Remove what was taken: it is in the spool."""
        for path in self._taken:
            path.unlink(missing_ok=True)
        self._taken = []

    def _files(self) -> list[Path]:
        try:
            return sorted(p for p in self._directory.iterdir() if p.suffix == ".json")
        except OSError:
            return []
