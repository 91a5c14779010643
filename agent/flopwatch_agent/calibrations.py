"""How far this host's counters are to be believed: kappa per card, driver and dtype, kept beside the spool.

How the file is written and read: `probing.kept`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import structlog

from flopwatch_agent.interval import Fold
from flopwatch_agent.probing.kept import Kept
from flopwatch_agent.rates import UNCALIBRATED, Trust
from flopwatch_agent.reading import Device, Reading, Share
from flopwatch_kernels.calibration import Calibration, Counted, dtype_map
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.v1 import telemetry_pb2 as pb

FILE_NAME: Final = "calibrations.json"

_PIPES: Final = ("hmma", "imma", "dfma", "dmma")
_TENSOR_FP64: Final = "fp64_tensor"

_log = structlog.get_logger()


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    v: int = 1
    calibrations: tuple[Calibration, ...] = ()


class Calibrations:
    """The calibrations of a data directory; `refresh` reads them.

    Attributes:
        known: (device, driver, dtype) → what was found; changed in place by `refresh`.
    """

    def __init__(self, directory: Path) -> None:
        self.known: dict[tuple[str, str, str], Calibration] = {}
        self._kept = kept(directory)
        self._trusts: dict[tuple[str, str, str | None], Trust] = {}
        self._told: set[tuple[str, str, str, int]] = set()
        self._untold: list[tuple[str, Calibration]] = []

    def trust(self, device: Device) -> Trust:
        """What the estimator is to make of a card's counters: its own kappas, and its SKU's map of dtypes."""
        if device.uuid is None or device.driver_version is None or not self.known:
            return UNCALIBRATED
        key = (device.uuid, device.driver_version, device.sku)
        if key not in self._trusts:
            self._trusts[key] = self._trust(*key)
            self._refuse(device)
        return self._trusts[key]

    def events(self, now_unix_ms: int) -> list[pb.Event]:
        """Return what is worth telling since the last call: each calibration that is refused, once."""
        untold, self._untold = self._untold, []
        return [
            pb.Event(
                slot=slot,
                time_unix_ms=now_unix_ms,
                kind="calibration_refused",
                text=f"{each.dtype} under driver {each.driver}: {each.refused}",
            )
            for slot, each in untold
        ]

    def _trust(self, uuid: str, driver: str, sku: str | None) -> Trust:
        own = [each for key, each in self.known.items() if key[:2] == (uuid, driver)]
        moved = dtype_map(self.known.values()).get((sku, driver), {})
        return Trust(
            kappas=tuple(
                (_peak_dtype(each.dtype), each.kappa)
                for each in own
                if each.kappa is not None and each.refused is None
            ),
            refused=tuple(_peak_dtype(each.dtype) for each in own if each.refused is not None),
            pipes=tuple((_peak_dtype(dtype), pipes) for dtype, pipes in moved.items()),
        )

    def _refuse(self, device: Device) -> None:
        for each in self.known.values():
            key = (*subject(each), each.taken_unix_ns)
            here = (each.device, each.driver) == (device.uuid, device.driver_version)
            if here and each.refused is not None and key not in self._told:
                self._told.add(key)
                self._untold.append((device.slot, each))

    def refresh(self) -> None:
        """Read the file if it is another one than last time; what it no longer says is gone."""
        news = self._kept.news()
        if news is None:
            return
        found = news.calibrations
        self.known.clear()
        self.known.update({subject(each): each for each in found})
        self._trusts.clear()
        self._told &= {(*subject(each), each.taken_unix_ns) for each in found}
        refused = sum(each.refused is not None for each in found)
        _log.info("calibrations_loaded", count=len(found), refused=refused)


def kept(directory: Path) -> Kept[Found]:
    """The file of a data directory."""
    return Kept(directory / FILE_NAME, Found, "calibrations")


def save(directory: Path, calibration: Calibration) -> None:
    """Keep a calibration; it replaces what was known of the same card, driver and dtype.

    Raises:
        UsageError: the directory cannot be written, or its file is something else.
    """
    file = kept(directory)
    others = (c for c in file.read().calibrations if subject(c) != subject(calibration))
    file.write(Found(calibrations=(*others, calibration)))


def counted(readings: Sequence[Reading], dtype: str) -> list[Counted]:
    """What the estimator says between consecutive readings of one card, with no kappa applied.

    Args:
        dtype: of the load; a library's fp64 product runs on the tensor pipe.
    """
    found = [_counted(before, after, dtype) for before, after in pairwise(readings)]
    return [each for each in found if each is not None]


def _counted(before: Reading, after: Reading, dtype: str) -> Counted | None:
    active = _number(after, "tensor_active_ratio")
    if active is None or not (before.alive and after.alive):
        return None
    key = _peak_dtype(dtype)
    fold = Fold(dtype=key)
    share = (Share(bucket=Bucket.ACTIVE, dtype=key, source="probe"),)
    rows = []
    for reading in (before, after):
        # The load is a probe of ours, whose time is left out elsewhere; here it is what is asked for.
        rows += fold.add(replace(reading, probed_ns=None), share)
    rows += fold.close(after.taken_unix_ms)
    flops = [row.values.get("u_flops", Absence.MISSING) for row in rows]
    pipes = {name: _number(after, f"{name}_active_ratio") for name in _PIPES}
    return Counted(
        start_ns=before.boottime_ns,
        end_ns=after.boottime_ns,
        flops=sum(value for value in flops if not isinstance(value, Absence)),
        active=active,
        pipes={name: ratio for name, ratio in pipes.items() if ratio is not None},
    )


def _number(reading: Reading, name: str) -> float | None:
    value = reading.values.get(name, Absence.MISSING)
    return None if isinstance(value, Absence) else value


def _peak_dtype(dtype: str) -> str:
    """The dtype as the peak table names it: an fp64 product of a library runs on the tensor pipe."""
    return _TENSOR_FP64 if dtype == "fp64" else dtype


def subject(calibration: Calibration) -> tuple[str, str, str]:
    """Of what it is: (device, driver, dtype)."""
    return calibration.device, calibration.driver, calibration.dtype
