"""What the agent and its driver child say to each other, and the frames it travels in.

A frame is the length of the body, four bytes little-endian, then the body: one tagged msgpack map.
The parent sends a request and the child answers it with exactly one reply, in order. A Failure may
stand for any reply: the driver as a whole cannot be used, and the child exits with EXIT_REINIT after it.
"""

from __future__ import annotations

from typing import Final

import msgspec

FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
LENGTH_BYTES: Final = 4
EXIT_REINIT: Final = 75
"""The child's exit status when the driver has to be opened afresh, by a new process."""


class InventoryRequest(msgspec.Struct, frozen=True, tag="inventory"):
    """List the cards anew; what was known not to be supported is forgotten.

    Attributes:
        skip: slots of cards that are listed and then left alone: another process hangs at them.
    """

    skip: tuple[str, ...] = ()


class ReadRequest(msgspec.Struct, frozen=True, tag="read"):
    """Read every card."""


class EventsRequest(msgspec.Struct, frozen=True, tag="events"):
    """Hand over the events that no reply has carried yet."""


class QuitRequest(msgspec.Struct, frozen=True, tag="quit"):
    """Close the driver and exit with 0."""


Request = InventoryRequest | ReadRequest | EventsRequest | QuitRequest


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A card as the driver names it; fields as in ``reading.Device``.

    Attributes:
        persistence: 0: the driver lets go of the card whenever nobody has it open.
    """

    slot: str
    sku: str | None = None
    uuid: str | None = None
    serial: str | None = None
    minor: int | None = None
    sm_count: int | None = None
    clock_mhz_max: float | None = None
    instances: tuple[str, ...] = ()
    instance_weights: tuple[float, ...] = ()
    persistence: int | None = None


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A compute process; fields as in ``reading.Process``."""

    pid: int
    started_unix_ms: int | None = None
    memory_bytes: int | None = None


class DriverEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An Xid. `slot` is empty when the driver did not name a card of the inventory."""

    slot: str
    code: int
    time_unix_ms: int
    gpu_instance: int | None = None


class InstanceReading(msgspec.Struct, frozen=True, kw_only=True):
    """What a MIG device has of its own; fields as in DeviceReading."""

    values: dict[str, float] = {}
    absences: dict[str, int] = {}


class DeviceReading(msgspec.Struct, frozen=True, kw_only=True):
    """One card, read.

    Attributes:
        values: reading field → value in the unit of its name.
        absences: reading field → ``rows.Absence`` number.
        processes: None when the driver did not say.
        failure: set when the driver gave the card up, e.g. ``gpu_is_lost``; the rest is empty then.
        gpm_denied: the performance counters need a permission that the agent does not have.
        method: where the activity comes from, as in ``reading.Reading``.
        disagreement: why the cycle counters are not believed.
        instances: by UUID of the MIG device.
    """

    slot: str
    taken_unix_ms: int
    boottime_ns: int
    values: dict[str, float] = {}
    absences: dict[str, int] = {}
    processes: list[ProcessInfo] | None = None
    failure: str | None = None
    gpm_denied: bool = False
    method: str = "gpm"
    disagreement: str | None = None
    instances: dict[str, InstanceReading] = {}


class InventoryReply(msgspec.Struct, frozen=True, kw_only=True, tag="inventory"):
    """The cards. `unreachable` counts those that the driver lists but does not let us open."""

    driver_version: str | None
    nvml_version: str | None
    devices: list[DeviceInfo]
    unreachable: int = 0


class ReadReply(msgspec.Struct, frozen=True, kw_only=True, tag="read"):
    """The readings, and the events since the last reply.

    Attributes:
        stale: the number of cards or a card's MIG devices differ from the inventory: ask for it again.
    """

    devices: list[DeviceReading]
    events: list[DriverEvent]
    stale: bool = False


class EventsReply(msgspec.Struct, frozen=True, kw_only=True, tag="events"):
    """The events since the last reply."""

    events: list[DriverEvent]


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """The driver as a whole cannot be used.

    Attributes:
        state: ``absent``, ``mismatch`` or ``lost``, as in the agent's driver state.
        call: the function that said so.
        code: its NVML return code.
        versions: of the library and of the loaded kernel module, where they could be read.
    """

    state: str
    call: str
    code: int
    text: str
    versions: str | None = None


Reply = InventoryReply | ReadReply | EventsReply | Failure

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def frame(message: Request | Reply) -> bytes:
    """Return the message as a frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def body_length(prefix: bytes) -> int:
    """Return the length of the body that follows.

    Raises:
        ValueError: longer than a frame may be: the stream is not ours.
    """
    length = int.from_bytes(prefix, "little")
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"frame of {length} bytes")
    return length


def parse_request(body: bytes) -> Request:
    """Return the request; msgspec.DecodeError when it is none."""
    return _requests.decode(body)


def parse_reply(body: bytes) -> Reply:
    """Return the reply; msgspec.DecodeError when it is none."""
    return _replies.decode(body)
