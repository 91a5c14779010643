"""The MIG devices of one card: the performance metrics of their GPU instances.

The driver counts per GPU instance; the compute instances of one share what it says. Ratios are of the
instance's own SMs. Rates, energy and the like are the card's: they are not told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flopwatch_agent.driver.gpm import RATIOS, Gpm, Means, Request
from flopwatch_agent.driver.inventory import MigDevice
from flopwatch_agent.driver.library import Library
from flopwatch_agent.driver.messages import InstanceReading
from flopwatch_proto.rows import Absence


class Instances:
    """The GPU instances of one card that have compute instances: the others are not asked.

    Attributes:
        gpms: number of the GPU instance → its metrics.
    """

    def __init__(
        self,
        library: Library,
        handle: Any,
        request: Request,
        clock_ns: Callable[[], int],
        devices: tuple[MigDevice, ...],
    ) -> None:
        self.gpms: dict[int, Gpm] = {}
        self._devices = devices
        for device in devices:
            number = device.gpu_instance
            if number is not None and number not in self.gpms:
                self.gpms[number] = Gpm(library, handle, request, clock_ns, device.sm_count, number)

    def read(
        self, now_ns: int, clock_mhz: float | None, present: tuple[MigDevice, ...]
    ) -> dict[str, InstanceReading]:
        """Return the reading of each MIG device that is there now.

        Args:
            present: those that the driver lists now. One that is not what it was is left out, until
                the cards are listed anew: its number may be another's by now.
        """
        there = set(present)
        means: dict[int, Means] = {}
        for number, gpm in self.gpms.items():
            if all(d in there for d in self._devices if d.gpu_instance == number):
                means[number] = gpm.read(now_ns, clock_mhz)
            else:
                gpm.restart()
        return {
            device.uuid: _reading(self.gpms[device.gpu_instance], means[device.gpu_instance])
            for device in self._devices
            if device.gpu_instance is not None and device.gpu_instance in means
        }

    def of_card(self, readings: dict[str, InstanceReading]) -> dict[str, float]:
        """Return the ratios of the whole card, where every MIG device has one; the rest is idle."""
        return {
            name: sum(d.weight * readings[d.uuid].values[name] for d in self._devices)
            for name in RATIOS
            if all(d.uuid in readings and name in readings[d.uuid].values for d in self._devices)
        }

    def close(self) -> None:
        """Free the samples."""
        for gpm in self.gpms.values():
            gpm.close()


def _reading(gpm: Gpm, means: Means) -> InstanceReading:
    absences = {
        name: int(Absence.MISSING if name in gpm.names else Absence.NOT_SUPPORTED)
        for name in RATIOS
        if name not in means
    }
    values = {}
    for name, value in means.items():
        if isinstance(value, Absence):
            absences[name] = int(value)
        else:
            values[name] = value
    return InstanceReading(values=values, absences=absences)
