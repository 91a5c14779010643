"""The child of the probes pcie and p2p: copies between host and card, and between two cards.

    python -m flopwatch_kernels.transfer SPEC     SPEC and the output: see `messages`

256 MiB of pinned memory (pcie) or of each card (p2p), less under a small memory cap: in one
direction, in the other, and in both at once on two streams. `median_value` is of the slower
direction alone; each is in `detail`. What arrives is compared with what was sent, byte by byte.
pcie is held against the link's raw rate: transfers per second x lanes x the line code; packets'
headers take some 5 to 15 % of that.

Source: PCI Express Base Specification, 8b/10b below 8 GT/s, 128b/130b to 32 GT/s, 242 of 256 bytes
in a flit at 64 GT/s; section 5.2 of this project's measurement science.
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from flopwatch_kernels.child import Tell, live
from flopwatch_kernels.cuda.driver import Card
from flopwatch_kernels.cuda.session import Repeated, Session
from flopwatch_kernels.messages import ProbeResult, ProbeSpec, Progress
from flopwatch_kernels.sensors import NvmlSensor

_BYTES_MAX: Final = 256 << 20
_CAP_PARTS: Final = 4
_BOTH_COPIES: Final = 8
_SEED: Final = 2026
_LANE_BYTES_PER_SECOND: Final = {
    1: 2.5e9 / 8 * 8 / 10,
    2: 5e9 / 8 * 8 / 10,
    3: 8e9 / 8 * 128 / 130,
    4: 16e9 / 8 * 128 / 130,
    5: 32e9 / 8 * 128 / 130,
    6: 64e9 / 8 * 242 / 256,
}
"""PCIe generation -> what one lane carries."""


def measure(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    """Measure in this process. Raises ProbeError, in words for whoever asked."""
    return _pcie(spec, tell) if spec.kind == "pcie" else _p2p(spec, tell)


def link_bytes_per_second(generation: int, width: int) -> float | None:
    """Raw rate of a PCIe link in one direction; None for a generation that is not known."""
    lane = _LANE_BYTES_PER_SECOND.get(generation)
    return None if lane is None else lane * width


def _pcie(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    import numpy as np

    session, size = Session(spec), _size(spec)
    card = session.card
    there = card.allocate(size)
    sent, returned = card.allocate_pinned(size), card.allocate_pinned(size)
    host = _array(sent, size)
    host[:] = np.random.default_rng(_SEED).integers(0, 256, size, dtype=np.uint8)
    _array(returned, size)[:] = 0

    def to_card(stream: Any = 0) -> None:
        card.to_card(there, sent, size, stream)

    def to_host(stream: Any = 0) -> None:
        card.to_host(returned, there, size, stream)

    runs = {"h2d": _timed(session, size, to_card, "to the card", tell)}
    runs["d2h"] = _timed(session, size, to_host, "to the host", tell)
    wrong = int((host != _array(returned, size)).sum())
    # Its own buffer each way: two copies of the same memory would wait for each other.
    other = card.allocate(size)
    both = _together(
        size,
        [(card, to_card), (card, lambda stream: card.to_host(returned, other, size, stream))],
    )
    detail: dict[str, float | str | int] = {"both_bytes_per_second": both, "bytes_wrong": wrong}
    rate = None
    if isinstance(session.sensor, NvmlSensor):
        link = session.sensor.pcie_link()  # after the copies: an idle link is a slow one
        if link is not None:
            detail |= {"link_generation": link[0], "link_width": link[1]}
            rate = link_bytes_per_second(*link)
    if rate is not None:
        detail["link_bytes_per_second"] = rate
    return _result(session, size, runs, detail, wrong, rate)


def _p2p(spec: ProbeSpec, tell: Tell) -> ProbeResult:
    import numpy as np

    session, size = Session(spec), _size(spec)
    assert session.peer_name is not None
    card, peer = session.card, Card(1, spec.memory_bytes_max)
    direct = peer.reach(card)
    direct = card.reach(peer) and direct
    sent = np.random.default_rng(_SEED).integers(0, 256, size, dtype=np.uint8)
    card.use()
    here, back = card.upload(sent.tobytes()), card.allocate(size)
    peer.use()
    there, other = peer.allocate(size), peer.allocate(size)
    card.use()

    def to_peer(stream: Any = 0) -> None:
        card.to_peer(peer, there, here, size, stream)

    def from_peer(stream: Any = 0) -> None:
        peer.to_peer(card, back, there, size, stream)

    runs = {"to_peer": _timed(session, size, to_peer, "to the peer", tell)}
    runs["from_peer"] = _timed(session, size, from_peer, "from the peer", tell)
    seen = np.frombuffer(card.download(back, size), dtype=np.uint8)
    wrong = int((sent != seen).sum())
    both = _together(
        size,
        [(card, to_peer), (peer, lambda stream: peer.to_peer(card, back, other, size, stream))],
    )
    detail: dict[str, float | str | int] = {
        "peer": session.peer_name,
        "direct": "yes" if direct else "no, through the host",
        "both_bytes_per_second": both,
        "bytes_wrong": wrong,
    }
    return _result(session, size, runs, detail, wrong, None)


def _size(spec: ProbeSpec) -> int:
    return min(_BYTES_MAX, spec.memory_bytes_max // _CAP_PARTS)


def _timed(
    session: Session, size: int, copy: Callable[[], None], what: str, tell: Tell
) -> Repeated:
    tell(Progress(text=f"{size >> 20} MiB {what}"))
    return session.repeated(lambda place: copy, what, tell)


def _together(size: int, copies: list[tuple[Card, Callable[[Any], None]]]) -> float:
    """Bytes per second of copies that run at the same time, by the host's clock."""
    streams = []
    for card, copy in copies:
        card.use()
        streams.append(card.stream())
        copy(streams[-1])
        card.wait(streams[-1])
    began_at = time.perf_counter()
    for _ in range(_BOTH_COPIES):
        for (card, copy), stream in zip(copies, streams, strict=True):
            card.use()
            copy(stream)
    for (card, _), stream in zip(copies, streams, strict=True):
        card.use()
        card.wait(stream)
    seconds = time.perf_counter() - began_at
    copies[0][0].use()
    return len(copies) * _BOTH_COPIES * size / seconds


def _result(
    session: Session,
    size: int,
    runs: dict[str, Repeated],
    detail: dict[str, float | str | int],
    wrong: int,
    rate: float | None,
) -> ProbeResult:
    medians = {name: statistics.median(run.durations_seconds) for name, run in runs.items()}
    slower = max(medians, key=lambda name: medians[name])
    for name, seconds in medians.items():
        detail[f"{name}_bytes_per_second"] = size / seconds
    return session.result_of_copies(
        runs[slower],
        bytes_each=size,
        bytes_per_second_most=rate,
        wrong=f"{wrong} bytes arrived different from what was sent" if wrong else None,
        detail=detail,
    )


def _array(address: int, size: int) -> Any:
    """Pinned memory as an array of bytes."""
    import numpy as np

    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


if __name__ == "__main__":
    sys.exit(live(sys.argv[1:], measure))
