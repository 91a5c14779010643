"""Cards by the kernel's list of PCI devices: what should be there, whatever the driver says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

PCI_ROOT: Final = Path("/sys/bus/pci/devices")
_NVIDIA: Final = "0x10de"
_DISPLAY_CLASS: Final = "0x03"
_DRIVER: Final = "nvidia"


def nvidia_slots(pci_root: Path = PCI_ROOT) -> tuple[str, ...]:
    """Return the addresses of NVIDIA's display controllers, sorted.

    Cards bound to another driver (``vfio-pci``: lent to a virtual machine) are not this host's.
    """
    try:
        places = sorted(pci_root.iterdir())
    except OSError:
        return ()
    return tuple(place.name for place in places if _is_ours(place))


class PciCards:
    """The same again and again; the devices are looked into only when their list has changed."""

    def __init__(self, pci_root: Path = PCI_ROOT) -> None:
        self._root = pci_root
        self._places: frozenset[str] | None = None
        self._slots: tuple[str, ...] = ()

    def slots(self) -> tuple[str, ...]:
        """Return the addresses of NVIDIA's display controllers now."""
        try:
            places = frozenset(os.listdir(self._root))
        except OSError:
            places = frozenset()
        if places != self._places:
            self._places = places
            self._slots = nvidia_slots(self._root)
        return self._slots


def _is_ours(place: Path) -> bool:
    try:
        vendor = (place / "vendor").read_text().strip()
        device_class = (place / "class").read_text().strip()
    except OSError:
        return False
    if vendor != _NVIDIA or not device_class.startswith(_DISPLAY_CLASS):
        return False
    driver = place / "driver"
    return not driver.exists() or driver.resolve().name == _DRIVER
