"""What the driver child said, as the agent's own values."""

from __future__ import annotations

from flopwatch_agent.driver.messages import DeviceInfo, DeviceReading, InstanceReading
from flopwatch_agent.reading import Device, Process, Reading
from flopwatch_proto.codec import Value
from flopwatch_proto.rows import Absence


def device_of(info: DeviceInfo, driver_version: str | None = None) -> Device:
    """Return the card."""
    return Device(
        slot=info.slot,
        kind="gpu",
        sku=info.sku,
        uuid=info.uuid,
        serial=info.serial,
        minor=info.minor,
        sm_count=info.sm_count,
        clock_mhz_max=info.clock_mhz_max,
        driver_version=driver_version,
        instances=info.instances,
        instance_weights=info.instance_weights,
    )


def reading_of(said: DeviceReading, device: Device) -> Reading:
    """Return the reading of the card."""
    return Reading(
        device=device,
        taken_unix_ms=said.taken_unix_ms,
        boottime_ns=said.boottime_ns,
        values=_values(said),
        processes=None
        if said.processes is None
        else tuple(
            Process(pid=p.pid, started_unix_ms=p.started_unix_ms, memory_bytes=p.memory_bytes)
            for p in said.processes
        ),
        alive=said.failure is None,
        failure=said.failure,
        method=said.method,
        disagreement=said.disagreement,
        instances={name: _values(part) for name, part in said.instances.items()},
    )


def _values(said: DeviceReading | InstanceReading) -> dict[str, Value]:
    return {**{name: Absence(code) for name, code in said.absences.items()}, **said.values}
