"""When a hash is held against a card, and when it only waits for others to agree."""

import msgspec
import pytest

from flopwatch_kernels import goldens
from flopwatch_kernels.goldens import Golden, added, judged, packaged, seen
from flopwatch_kernels.messages import ProbeResult

DETAIL: dict[str, float | str | int] = {
    "golden_shape": "256x256x256",
    "golden_library": "torch 2.13.0, 132 SMs",
    "golden_operands_sha256": "aa",
    "golden_product_sha256": "bb",
}
RESULT = ProbeResult(
    kind="sdc",
    device="cuda:GPU-1",
    sku="NVIDIA H100 80GB HBM3",
    dtype="bf16",
    iterations=16,
    seconds=1.0,
    sustained=False,
    started_at_unix_ns=1,
    detail=DETAIL,
)
FOUND = seen(RESULT)
assert FOUND is not None


def of(device: str, product: str = "bb") -> Golden:
    assert FOUND is not None
    return msgspec.structs.replace(FOUND, devices=(device,), product=product)


def known(product: str) -> Golden:
    return msgspec.structs.replace(of("a", product), provenance="ten cards of the acceptance test")


def test_a_hash_that_nobody_knows_is_a_candidate_and_no_failure() -> None:
    for others in ((), (of("cuda:GPU-2", "cc"),)):
        result = judged(RESULT, others)
        assert (result.outcome, result.detail["golden"]) == ("ok", "candidate")


def test_a_hash_that_three_devices_agree_on_is_known_and_the_same_device_counts_once() -> None:
    kept: tuple[Golden, ...] = ()
    for device, is_known in (("g1", False), ("g1", False), ("g2", False), ("g3", True)):
        kept = added(kept, of(device))
        assert [golden.known for golden in kept] == [is_known]
    assert judged(RESULT, kept).detail["golden"] == "agrees"
    assert len(added(kept, of("g4"))[0].devices) == goldens.QUORUM


def test_a_card_that_differs_from_a_known_hash_is_corrupt_and_both_hashes_are_named() -> None:
    result = judged(RESULT, (known("cc"),))
    assert (result.outcome, result.detail["golden"]) == ("corrupt", "differs")
    assert result.reason is not None
    assert "hashes to bb and to cc elsewhere; quarantine cuda:GPU-1" in result.reason


def test_a_first_card_that_was_wrong_does_not_blame_those_after_it() -> None:
    kept = added((), of("wrong", "cc"))
    for device in ("g1", "g2", "g3"):
        assert judged(RESULT, kept).outcome == "ok"
        kept = added(kept, of(device))
    wrong = msgspec.structs.replace(RESULT, detail={**DETAIL, "golden_product_sha256": "cc"})
    assert judged(RESULT, kept).detail["golden"] == "agrees"
    assert judged(wrong, kept).outcome == "corrupt"


@pytest.mark.parametrize(
    "other",
    [
        {"sku": "NVIDIA H200"},
        {"library": "torch 2.14.0, 132 SMs"},
        {"dtype": "fp16"},
        {"shape": (1, 1, 1)},
        {"operands": "other numbers of the same seed"},
    ],
)
def test_a_hash_of_something_else_is_held_against_nobody(other: dict[str, object]) -> None:
    golden = msgspec.structs.replace(known("cc"), **other)
    assert judged(RESULT, (golden,)).detail["golden"] == "candidate"


def test_a_result_without_a_hash_or_already_corrupt_stays_as_it_is() -> None:
    for result in (
        msgspec.structs.replace(RESULT, kind="gemm"),
        msgspec.structs.replace(RESULT, outcome="corrupt", reason="checksum"),
        msgspec.structs.replace(RESULT, detail={}),
    ):
        assert judged(result, (known("cc"),)) is result


def test_what_is_packaged_can_be_read_and_each_known_hash_says_where_it_is_from() -> None:
    for golden in packaged():
        assert golden.provenance or not golden.known
