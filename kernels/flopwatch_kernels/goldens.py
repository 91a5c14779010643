"""Golden hashes: what a seeded product must be, to the bit, on a SKU with a library. No torch.

One library version on one SKU computes the same bits at every run, so the hash of a seeded product
tells a card that computes something else. Whether a hash is the right one nobody can say from one
card: a hash is *known* once a person has put its provenance down, or once `QUORUM` devices agree
on it; until then it is a *candidate*, and a card that differs from it has not failed.

The operands are hashed too: were another machine to draw other numbers from the same seed, its
products would be compared with nothing, and never blamed.
"""

from collections.abc import Iterable
from importlib import resources
from typing import Final

import msgspec

from flopwatch_kernels.messages import ProbeResult

QUORUM: Final = 3
"""Devices that must agree before a hash is held against others."""

FILE_NAME: Final = "goldens.json"


class Golden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hash that was seen.

    Attributes:
        sku: Full device name.
        library: What computed, with its version and whatever else the bits depend on.
        dtype: Operand format.
        shape: (m, n, k).
        operands: SHA-256 of A and B.
        product: SHA-256 of C.
        provenance: Who vouches for it and from what; empty for a candidate.
        devices: Where it was seen, at most `QUORUM` of them.
    """

    sku: str
    library: str
    dtype: str
    shape: tuple[int, int, int]
    operands: str
    product: str
    provenance: str = ""
    devices: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether it is held against others."""
        return bool(self.provenance) or len(self.devices) >= QUORUM


class Goldens(msgspec.Struct, frozen=True, kw_only=True):
    """The file. Attributes: v: its format; goldens: in the order in which they were seen."""

    v: int = 1
    goldens: tuple[Golden, ...] = ()


def packaged() -> tuple[Golden, ...]:
    """The hashes that come with this package."""
    text = resources.files("flopwatch_kernels").joinpath(FILE_NAME).read_bytes()
    return msgspec.json.decode(text, type=Goldens).goldens


def seen(result: ProbeResult) -> Golden | None:
    """The hash that a screen found; None where it found none, or a wrong product."""
    detail = result.detail
    if result.kind != "sdc" or result.outcome != "ok" or "golden_product_sha256" not in detail:
        return None
    m, n, k = (int(edge) for edge in str(detail["golden_shape"]).split("x"))
    return Golden(
        sku=result.sku or "",
        library=str(detail["golden_library"]),
        dtype=result.dtype or "",
        shape=(m, n, k),
        operands=str(detail["golden_operands_sha256"]),
        product=str(detail["golden_product_sha256"]),
        devices=(result.device,),
    )


def judged(result: ProbeResult, goldens: Iterable[Golden]) -> ProbeResult:
    """The result with what the goldens say of its hash in `detail["golden"]`.

    "agrees" with a known one or "differs" (the outcome is then "corrupt"), "candidate" where none
    is known. A result without a hash comes back as it is.
    """
    found = seen(result)
    if found is None:
        return result
    known = [g for g in goldens if g.known and _key(g) == _key(found)]
    if any(golden.product == found.product for golden in known):
        return _with(result, "agrees")
    if not known:
        return result if "golden" in result.detail else _with(result, "candidate")
    reason = (
        f"the seeded {found.dtype} product hashes to {found.product} and to"
        f" {known[0].product} elsewhere; quarantine {result.device} and screen it again"
    )
    return msgspec.structs.replace(_with(result, "differs"), outcome="corrupt", reason=reason)


def added(goldens: Iterable[Golden], found: Golden) -> tuple[Golden, ...]:
    """The goldens after `found` was seen once more, by its device."""
    others, devices, provenance = [], found.devices, ""
    for golden in goldens:
        if _key(golden) == _key(found) and golden.product == found.product:
            devices = tuple(dict.fromkeys((*golden.devices, *found.devices)))[:QUORUM]
            provenance = golden.provenance
        else:
            others.append(golden)
    return (*others, msgspec.structs.replace(found, devices=devices, provenance=provenance))


def _key(golden: Golden) -> tuple[object, ...]:
    return golden.sku, golden.library, golden.dtype, golden.shape, golden.operands


def _with(result: ProbeResult, golden: str) -> ProbeResult:
    return msgspec.structs.replace(result, detail={**result.detail, "golden": golden})
