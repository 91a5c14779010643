"""Child process: says a hundred times a second which processes are on a card. `python -m …watch CARD`.

CARD is a UUID or an index in PCI order. Lines of JSON: one `Found`, then `Seen`; or one `Refusal`. It ends
when nobody reads, and may be killed at any moment. The driver is touched here and nowhere else.
"""

from __future__ import annotations

import sys
import time
from typing import Final

import msgspec

PERIOD_SECONDS: Final = 0.01


class Found(msgspec.Struct, frozen=True, kw_only=True, tag="found"):
    """The card as the driver names it; `cut`: into MIG devices."""

    slot: str
    uuid: str
    sku: str | None
    serial: str | None
    driver_version: str | None
    cut: bool


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag="seen"):
    """Its processes now; None: the driver does not say."""

    pids: list[int] | None


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """Why there is nothing to watch."""

    text: str


Line = Found | Seen | Refusal


def main(selector: str) -> int:
    """Watch a card until nobody reads."""
    # Imported here: the parent reads the messages above without loading the driver's binding.
    from flopwatch_agent.driver.inventory import list_cards
    from flopwatch_agent.driver.library import Library, LibraryError
    from flopwatch_agent.driver.processes import ComputeProcesses

    try:
        library = Library()
        cards = sorted(list_cards(library)[0], key=lambda card: card.info.slot)
        mine = [c for i, c in enumerate(cards) if selector in (c.info.uuid, str(i))]
        if not mine:
            _say(Refusal(text=f"the driver knows no card {selector!r}"))
            return 1
        info, handle = mine[0].info, mine[0].handle
        _say(
            Found(
                slot=info.slot,
                uuid=info.uuid or info.slot,
                sku=info.sku,
                serial=info.serial,
                driver_version=library.text("nvmlSystemGetDriverVersion"),
                cut=bool(info.instances),
            )
        )
        processes = ComputeProcesses(library)
        while True:
            listed = processes.read(handle)
            _say(Seen(pids=None if listed is None else [p.pid for p in listed]))
            time.sleep(PERIOD_SECONDS)
    except LibraryError as exc:
        _say(Refusal(text=f"the driver does not answer: {exc}"))
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _say(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
