"""How fast a card's links are, per SKU and direction: what turns bytes moved into time a link was busy.

NVLink is the sum over a card's links, of cards with a bridge where that is an option; PCIe is a slot of 16
lanes. As the makers' sheets state them, which print both directions together. A SKU that is not listed is
not known, and nothing is assumed for it.
"""

from __future__ import annotations

from typing import Final

from flopwatch_kernels import peaks

_GEN3, _GEN4, _GEN5 = 15.75e9, 31.5e9, 63.0e9
_BYTES_PER_SECOND: Final[dict[str, tuple[float | None, float | None]]] = {
    "V100-SXM2": (150e9, _GEN3),
    "V100-PCIe": (None, _GEN3),
    "T4": (None, _GEN3),
    "A10": (None, _GEN4),
    "A30": (100e9, _GEN4),
    "A100-SXM4-40GB": (300e9, _GEN4),
    "A100-SXM4-80GB": (300e9, _GEN4),
    "A100-PCIe-40GB": (300e9, _GEN4),
    "A100-PCIe-80GB": (300e9, _GEN4),
    "A800-SXM4-80GB": (200e9, _GEN4),
    "L4": (None, _GEN4),
    "L40": (None, _GEN4),
    "L40S": (None, _GEN4),
    "H20": (450e9, _GEN5),
    "H100-PCIe": (300e9, _GEN5),
    "H100-NVL": (300e9, _GEN5),
    "H100-SXM5": (450e9, _GEN5),
    "H200-NVL": (450e9, _GEN5),
    "H200-SXM": (450e9, _GEN5),
    "H800-SXM5": (200e9, _GEN5),
    "GH200-96GB": (450e9, None),
    "B100": (900e9, _GEN5),
    "B200-SXM": (900e9, _GEN5),
    "B300-SXM": (900e9, None),
    "GB200": (900e9, None),
    "GB300": (900e9, None),
}


def link_bytes_per_second(sku: str) -> tuple[float | None, float | None]:
    """Return the bytes/s of (NVLink, PCIe) in one direction; None where the SKU has none or it is not known.

    Args:
        sku: a device name or PCI id, as for `peaks.find`.
    """
    found = peaks.find(sku)
    return (None, None) if found is None else _BYTES_PER_SECOND.get(found.key, (None, None))
