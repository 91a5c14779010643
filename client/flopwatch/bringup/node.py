"""The acceptance of a node: stage after stage, until one fails. What it looks at comes from a `Host`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from flopwatch.bringup.measured import beside_fleet, beside_peers, judged
from flopwatch.bringup.stages import Check, Stage, failed, not_run, passed, reason
from flopwatch_agent.probing.inbox import Record
from flopwatch_agent.reading import Reading
from flopwatch_collector.inventory import Slot
from flopwatch_kernels.messages import ProbeResult
from flopwatch_kernels.probe import PROBE_KINDS
from flopwatch_proto.rows import Absence, SlotState

STAGES: Final = ("driver", "counts", "health", "sdc", "gemm", "links", "sustained", "fleet")
_PROBES: Final[dict[str, tuple[str, ...]]] = {
    "sdc": ("sdc",),
    "gemm": ("gemm",),
    "links": ("bandwidth", "pcie", "p2p"),
    "sustained": ("gemm",),
}
_OPTIONAL: Final = ("links", "fleet")
"""Stages that do not fail where they cannot run: kinds that a host lacks, a collector that nobody named."""


class Host(Protocol):
    """What a bring-up looks at.

    Attributes:
        cpu: the processor is accepted in place of cards.
        rehearsal: the processor is loaded in the cards' place.
    """

    cpu: bool
    rehearsal: bool

    def driver(self) -> list[Check]:
        """Look at driver, library, rights."""
        ...

    def pci(self) -> Sequence[str] | None:
        """Return the slots that the kernel lists; None: it is not asked."""
        ...

    def readings(self) -> Sequence[Reading]:
        """Return one reading of each card."""
        ...

    def inventory(self) -> Sequence[Slot] | None:
        """Return the node's slots of the inventory as they stand; None: there is none."""
        ...

    def probe(self, card: Reading, kind: str, peer: Reading | None, *, sustained: bool) -> Probed:
        """Probe a card."""
        ...

    def under_load(self, slot: str) -> Reading | None:
        """Return what the card said while it was last probed sustained; None: nobody asked it."""
        ...

    def fleet(self) -> Mapping[str, Any] | None:
        """Return the answer of `/api/v1/ceilings`; None: no collector was named."""
        ...


Probed = tuple[ProbeResult | None, str]
"""What was measured, or None and why it was not."""


class Node:
    """One acceptance.

    Args:
        host: what is looked at.
        now_unix_ms: the wall clock.
        done: stages that an earlier run passed; they are not run again.
        results: what that run measured.

    Attributes:
        stages: those that have ended.
        results: (slot, what was measured).
    """

    def __init__(
        self,
        host: Host,
        now_unix_ms: Callable[[], int],
        done: Sequence[Stage] = (),
        results: Sequence[tuple[str, ProbeResult]] = (),
    ) -> None:
        self._host = host
        self._now_unix_ms = now_unix_ms
        self._done = {stage.name: stage for stage in done}
        self._cards: list[Reading] = []
        self.stages: list[Stage] = []
        self.results: list[tuple[str, ProbeResult]] = list(results) if done else []

    @property
    def passed(self) -> bool:
        """Whether every stage has ended, and none failed."""
        return len(self.stages) == len(STAGES) and all(s.outcome != "fail" for s in self.stages)

    def steps(self, cards: int) -> int:
        """Return how many steps there are, for who shows progress."""
        return len(STAGES) - len(_PROBES) + cards * sum(len(kinds) for kinds in _PROBES.values())

    def run(self, cards: Sequence[Reading]) -> Iterator[str]:
        """Run stage after stage until one fails; yield, before each step, what comes."""
        self._cards = list(cards)
        for name in STAGES:
            if name in self._done:
                self.stages.append(self._done[name])
                continue
            checks: list[Check] = []
            yield from self._stage(name, checks)
            stage = Stage(
                name=name,
                checks=tuple(checks),
                ended_unix_ms=self._now_unix_ms(),
                required=name not in _OPTIONAL,
            )
            self.stages.append(stage)
            if stage.outcome == "fail":
                return

    def records(self, driver_version: str | None, start_unix_ms: int) -> list[Record]:
        """Return the verdict on each card, for the collector."""
        last = self.stages[-1]
        records = []
        for card in self._cards:
            device = card.device
            why = reason(self.stages, device.slot)
            outcome = "ok" if self.passed else "failed" if why else "aborted"
            records.append(
                Record(
                    slot=device.slot,
                    start_unix_ms=start_unix_ms,
                    kind="bringup",
                    outcome=outcome,  # type: ignore[arg-type]
                    reason=why
                    or ("" if self.passed else f"not finished: {last.name} failed beside it"),
                    sku=device.sku or "",
                    device_uuid=device.uuid or "",
                    serial=device.serial or "",
                    driver_version=driver_version or "",
                    seconds=max(0, self._now_unix_ms() - start_unix_ms) / 1e3,
                    result={
                        stage.name: {
                            "outcome": stage.outcome,
                            "checks": [c.text for c in stage.checks if c.card in ("", device.slot)],
                        }
                        for stage in self.stages
                    },
                )
            )
        return records

    def _stage(self, name: str, checks: list[Check]) -> Iterator[str]:
        if name in _PROBES:
            yield from self._probes(name, checks)
            return
        yield name
        if name == "driver":
            checks += self._host.driver()
        elif name == "counts":
            checks += self._counts()
        elif name == "health":
            checks += [check for card in self._cards for check in health(card)]
        else:
            answer = self._host.fleet()
            if answer is None:
                checks.append(not_run("no collector was named: --api URL"))
            else:
                nothing = passed("fewer than five cards alike were measured: nothing to compare")
                checks += beside_fleet(self.results, answer) or [nothing]

    def _counts(self) -> list[Check]:
        there = {card.device.slot for card in self._cards}
        checks: list[Check] = []
        pci = self._host.pci()
        if pci is not None:
            checks += [
                failed("on the PCI bus, and the driver does not list it", s)
                for s in pci
                if s not in there
            ]
            checks += [
                failed("the driver lists it, and the PCI bus does not", s) for s in there - set(pci)
            ]
        slots = self._host.inventory()
        if slots is not None:
            owned = {slot.slot: slot for slot in slots if slot.state is not SlotState.RETIRED}
            checks += [failed("in the inventory, and not here", s) for s in owned if s not in there]
            checks += [failed("here, and not in the inventory", s) for s in there - owned.keys()]
            checks += [
                failed(f"is {card.device.sku!r}, and the inventory says {slot.sku!r}", slot.slot)
                for card in self._cards
                if (slot := owned.get(card.device.slot))
                and slot.sku
                and slot.sku != card.device.sku
            ]
        said = [
            "driver",
            *(["PCI"] if pci is not None else []),
            *(["inventory"] if slots is not None else []),
        ]
        return checks or [passed(f"{len(there)} by {', '.join(said)}")]

    def _probes(self, name: str, checks: list[Check]) -> Iterator[str]:
        known = {kind.name: kind for kind in PROBE_KINDS}
        no_card = self._host.cpu or self._host.rehearsal
        for kind in _PROBES[name]:
            of = known.get(kind)
            if of is None or (no_card and not of.on_cpu):
                checks.append(not_run(f"{kind}: not on this host"))
                continue
            if of.peer and len(self._cards) < 2:
                checks.append(not_run(f"{kind}: one card"))
                continue
            results: dict[str, ProbeResult] = {}
            for i, card in enumerate(self._cards):
                slot = card.device.slot
                yield f"{name}: {kind} of {slot}"
                peer = self._cards[(i + 1) % len(self._cards)] if of.peer else None
                result, why = self._host.probe(card, kind, peer, sustained=name == "sustained")
                if result is None:
                    checks.append(failed(f"{kind}: {why}", slot))
                    continue
                results[slot] = result
                self.results.append((slot, result))
                checks.append(judged(result, slot))
                if name == "sustained":
                    checks += link(self._host.under_load(slot))
            checks += beside_peers(results)


def health(card: Reading) -> list[Check]:
    """Return what a card says of itself: link, memory, who is on it. What it does not say is no failure."""
    slot = card.device.slot
    if not card.alive:
        return [failed(f"the driver does not answer: {card.failure}", slot)]
    checks: list[Check] = []
    if card.processes:
        checks.append(failed(f"process {card.processes[0].pid} is on it", slot))
    if card.device.instances:
        checks.append(failed("it is cut into MIG devices", slot))
    width, most = _known(card, "pcie_link_width"), _known(card, "pcie_link_width_limit")
    if width is not None and most is not None and width < most:
        checks.append(failed(f"its link is x{width:.0f} of x{most:.0f}", slot))
    for name, text in (
        ("ecc_uncorrected_total", "memory errors that were not corrected"),
        ("remapped_rows_pending", "rows of memory wait to be remapped: reset it"),
        ("remapped_rows_failed", "a remapping of memory rows failed"),
    ):
        count = _known(card, name)
        if count:
            checks.append(failed(text if "remapped" in name else f"{count:.0f} {text}", slot))
    return checks or [passed("memory and link in order", slot)]


def link(card: Reading | None) -> list[Check]:
    """Return whether the link of a card under load is as fast as it can be; idle ones are slow by design."""
    if card is None:
        return []
    now, most = _known(card, "pcie_link_generation"), _known(card, "pcie_link_generation_limit")
    if now is None or most is None:
        return []
    text = f"link at generation {now:.0f} of {most:.0f} under load"
    return [failed(text, card.device.slot) if now < most else passed(text, card.device.slot)]


def _known(card: Reading, name: str) -> float | None:
    value = card.values.get(name)
    return None if value is None or isinstance(value, Absence) else float(value)
