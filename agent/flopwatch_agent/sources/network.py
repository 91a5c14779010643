"""Network and RDMA counters of the host, from sysfs.

    /sys/class/net/NAME/{device, carrier_down_count}, statistics/{tx_bytes, rx_bytes, …_errors}
    /sys/class/infiniband/NAME/ports/N/counters/{port_xmit_data, port_rcv_data, symbol_error, …}
                                      /hw_counters/{tx_bytes, rx_bytes}

RDMA data counters count words of 4 bytes (Documentation/ABI/stable/sysfs-class-infiniband); adapters that
have none there (EFA) have bytes among their hardware counters. RoCE ports have the same files as InfiniBand.

A sum over links has no value at the reading at which one of them fell (it restarted, or wrapped after 32
bits), came or went: what passed in between nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WORD_BYTES: Final = 4
PORTS_MAX: Final = 256
_RDMA_ERRORS: Final = ("symbol_error", "link_error_recovery", "link_downed", "port_rcv_errors")
_NET_ERRORS: Final = ("statistics/rx_errors", "statistics/tx_errors", "carrier_down_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReading:
    """Counters over all links of a kind. None: there is no link, or one of them began anew.

    Attributes:
        errors_count: symbol errors, failed packets, recoveries, and how often a link went down.
    """

    tx_bytes: float | None = None
    rx_bytes: float | None = None
    errors_count: float | None = None


class CounterSum:
    """The sum of the counters of several links, which is known only while all of them just count on."""

    def __init__(self) -> None:
        self._before: Mapping[str, float] | None = None

    def of(self, counters: Mapping[str, float]) -> float | None:
        """Return the sum, or None where a link fell, came or went since the call before."""
        before, self._before = self._before, counters
        if not counters:
            return None
        if before is not None and (
            before.keys() != counters.keys()
            or any(count < before[link] for link, count in counters.items())
        ):
            return None
        return sum(counters.values())


class Links:
    """Counters of all links of a kind, link by link."""

    def __init__(self) -> None:
        self._sums = (CounterSum(), CounterSum(), CounterSum())

    def reading(self, links: Mapping[str, tuple[float | None, ...]]) -> LinkReading:
        """Return the sums of link → (bytes sent, bytes received, errors)."""
        tx, rx, errors = (
            total.of({link: c for link, counts in links.items() if (c := counts[i]) is not None})
            for i, total in enumerate(self._sums)
        )
        return LinkReading(tx_bytes=tx, rx_bytes=rx, errors_count=errors)


class Interfaces(Links):
    """Network interfaces.

    Bridges and veth pairs repeat what a real interface carries: only interfaces with a device behind them
    count, or all but the loopback where there is none (inside a container).
    """

    def __init__(self, root: Path = Path("/sys/class/net")) -> None:
        """Args: root: where the kernel lists network interfaces."""
        super().__init__()
        self._root = root

    def read(self) -> LinkReading:
        """Return what they count now."""
        paths = [path for path in _list(self._root) if path.name != "lo"]
        real = [path for path in paths if (path / "device").exists()]
        return self.reading(
            {
                path.name: (
                    _number(path / "statistics/tx_bytes"),
                    _number(path / "statistics/rx_bytes"),
                    _sum(path / name for name in _NET_ERRORS),
                )
                for path in real or paths
            }
        )


class RdmaPorts(Links):
    """Ports of RDMA adapters. Reading one asks its firmware and may hang with it."""

    def __init__(self, root: Path = Path("/sys/class/infiniband")) -> None:
        """Args: root: where the kernel lists RDMA devices."""
        super().__init__()
        self._root = root

    @property
    def found(self) -> bool:
        """Return whether this host has any."""
        return any(True for _ in self._ports())

    def read(self) -> LinkReading:
        """Return what they count now."""
        return self.reading(
            {
                f"{port.parent.parent.name}/{port.name}": (
                    _data(port, "port_xmit_data", "tx_bytes"),
                    _data(port, "port_rcv_data", "rx_bytes"),
                    _sum(port / "counters" / name for name in _RDMA_ERRORS),
                )
                for port in self._ports()
            }
        )

    def _ports(self) -> Iterator[Path]:
        ports = (port for device in _list(self._root) for port in _list(device / "ports"))
        for port, _ in zip(ports, range(PORTS_MAX), strict=False):
            yield port


def _data(port: Path, words: str, hardware_bytes: str) -> float | None:
    count = _number(port / "counters" / words)
    return _number(port / "hw_counters" / hardware_bytes) if count is None else count * WORD_BYTES


def _sum(paths: Iterator[Path]) -> float | None:
    """Return the sum of the counters that are there."""
    counts = [count for path in paths if (count := _number(path)) is not None]
    return sum(counts) if counts else None


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _number(path: Path) -> float | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None
