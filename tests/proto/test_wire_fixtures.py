"""What every release sends can be read by this one; and thousands of broken frames harm nobody."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zstandard
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError

from contract import breaks
from flopwatch_collector.ingest_stream import PROTOCOL_REVISION, wrong
from flopwatch_collector.telemetry.arrival import Origin, of_batch, of_gap, unfit
from flopwatch_proto import codec
from flopwatch_proto.errors import PermanentError
from flopwatch_proto.v1 import telemetry_pb2 as pb

FIXTURES: Final = Path(__file__).parent / "fixtures"
RELEASES: Final = sorted(p.name for p in FIXTURES.iterdir())
START_MS: Final = 1_767_225_600_000
ORIGIN: Final = Origin(cluster="atlas", node="n1", simulated=False, spool_id="5" * 32)
BROKEN: Final = 6_000


def wire(release: str, name: str) -> bytes:
    return (FIXTURES / release / f"{name}.binpb").read_bytes()


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("form", ["plain", "packed"])
def test_a_batch_of_every_release_is_read_with_all_that_it_holds(release: str, form: str) -> None:
    frame = pb.AgentFrame.FromString(wire(release, f"agent-batch-{form}"))
    arrival = of_batch(ORIGIN, frame.batch, START_MS + 60_000)
    assert unfit(arrival, START_MS + 60_000) is None
    assert arrival.interval_rows == 1
    assert {"slot", "event", "probe", "roster", "receipt"} <= arrival.tables.keys()
    payload = codec.opened(frame.batch)
    if form == "plain":
        columns = codec.decode_rows(payload.intervals)
        assert (columns["job"], columns["sm_active_ms"]) == (["j-17"], [9_000.5])
        assert columns["fp64_active_ms"] == [None]


@pytest.mark.parametrize("release", RELEASES)
def test_every_frame_of_every_release_says_today_what_it_said(release: str) -> None:
    hello = pb.AgentFrame.FromString(wire(release, "agent-hello"))
    assert wrong(hello) is None
    assert (hello.hello.node_id, hello.hello.next_seq) == ("n1", 3)
    gap = pb.AgentFrame.FromString(wire(release, "agent-gap")).gap
    assert of_gap(ORIGIN, gap).tables["gap"]["rows"] == [64]
    status = pb.AgentFrame.FromString(wire(release, "agent-status")).status
    assert codec.decode_rows(status.newest)["sm_active_ms"] == [9_000.5]
    assert pb.AgentFrame.FromString(wire(release, "agent-goodbye")).goodbye.back_in_ms == 5_000
    ack = pb.CollectorFrame.FromString(wire(release, "collector-ack")).ack
    assert (ack.through_seq, ack.stored_rows, ack.credit_batches) == (2, 1, 32)
    reject = pb.CollectorFrame.FromString(wire(release, "collector-reject")).reject
    assert (reject.seq, reject.code, reject.permanent) == (2, "bad_rows", True)
    drain = pb.CollectorFrame.FromString(wire(release, "collector-drain")).drain
    assert drain.reconnect_after_ms == 1_500
    welcome = pb.CollectorFrame.FromString(wire(release, "collector-welcome")).welcome
    assert (welcome.session, welcome.credit_batches) == ("s", 32)
    assert pb.CollectorFrame.FromString(wire(release, "collector-capture")).capture.id == "c"


@pytest.mark.parametrize("release", RELEASES)
def test_the_contract_breaks_no_release(release: str) -> None:
    then = FileDescriptorSet.FromString(wire(release, "descriptor"))
    today = FileDescriptorSet.FromString(
        Path(pb.__file__).with_name("descriptor.binpb").read_bytes()
    )
    assert breaks(then, today) == []


@pytest.mark.parametrize(
    ("revision", "taken"),
    [
        (PROTOCOL_REVISION, True),
        (PROTOCOL_REVISION + 1, True),
        (PROTOCOL_REVISION + 2, False),
        (0, False),
    ],
)
def test_one_revision_ahead_is_taken_and_what_is_further_is_told_what_to_do(
    revision: int, taken: bool
) -> None:
    frame = pb.AgentFrame.FromString(wire(RELEASES[-1], "agent-hello"))
    frame.hello.protocol_revision = revision
    frame.hello.MergeFromString(b"\xfa\x7f\x03abc")  # a field that only the newer side knows
    assert (wrong(frame) is None) is taken
    assert taken or "update the older side" in (wrong(frame) or "")


def test_thousands_of_broken_frames_are_refused_and_never_crash() -> None:
    seen = {"unreadable": 0, "refused": 0, "taken": 0}
    for data in broken():
        try:
            frame = pb.AgentFrame.FromString(data)
        except DecodeError:
            seen["unreadable"] += 1
            continue
        try:
            take(frame)
            seen["taken"] += 1
        except PermanentError:
            seen["refused"] += 1
    assert all(count > BROKEN // 100 for count in seen.values()), seen


def take(frame: pb.AgentFrame) -> None:
    """Do with a frame what ingest does before it is queued, and what the commit would find."""
    match frame.WhichOneof("frame"):
        case "batch":
            why = unfit(of_batch(ORIGIN, frame.batch, START_MS + 60_000), START_MS + 60_000)
            if why is not None:
                raise PermanentError(why)
        case "gap":
            of_gap(ORIGIN, frame.gap)
        case "status":
            codec.decode_rows(frame.status.newest)
        case "hello":
            wrong(frame)


def broken() -> Iterator[bytes]:
    """Frames with flipped, cut, doubled and foreign bytes; payloads with a right hash whose inside lies."""
    chance = random.Random(20)
    names = ("batch-plain", "batch-packed", "status", "gap", "hello")
    corpus = [wire(RELEASES[-1], f"agent-{name}") for name in names]
    inside = [codec.opened(pb.AgentFrame.FromString(data).batch) for data in corpus[:2]]
    raws = [payload.SerializeToString() for payload in inside]
    for i in range(BROKEN):
        if i % 2:
            yield mutated(chance.choice(corpus), chance)
        else:
            yield sealed(mutated(chance.choice(raws), chance)).SerializeToString()


def mutated(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made) or 1)
        match chance.randrange(4):
            case 0:
                made[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del made[at : at + chance.randrange(1, 9)]
            case 2:
                made[at:at] = made[at : at + chance.randrange(1, 64)]
            case 3:
                made[at:at] = chance.choice((b"\xff" * 10, b"\0" * 8, b"\x80" * 12))
    return bytes(made)


def sealed(raw: bytes, *, says: int | None = None) -> pb.AgentFrame:
    """A batch whose hash is right, whatever it holds."""
    batch = pb.AgentFrame.FromString(wire(RELEASES[-1], "agent-batch-plain")).batch
    batch.sha256_16 = hashlib.sha256(raw).digest()[:16]
    batch.raw_bytes = len(raw) if says is None else says
    batch.payload = zstandard.compress(raw)
    return pb.AgentFrame(batch=batch)


@pytest.mark.parametrize("says", [10, 4 * 1024**2, 2**31])
def test_a_payload_that_grows_beyond_its_word_is_refused_before_it_fills_the_memory(
    says: int,
) -> None:
    bomb = sealed(b"\0" * 64 * 1024**2, says=says)
    assert len(bomb.batch.payload) < 16 * 1024
    with pytest.raises(PermanentError, match=r"bad_payload|too_large|bad_hash"):
        of_batch(ORIGIN, bomb.batch, START_MS)
