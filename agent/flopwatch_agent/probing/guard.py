"""One probe, from the lock to the result. Blocking: a process of its own runs it, never the agent's loop.

    refuse ◄─ lock ─► witness ─► budget charged ─► run_probe ─► budget settled ─► inbox ─► lock released
                         └── somebody comes: the probe is killed, and recorded as aborted

Policies: ``idle`` is the agent's own choice, ``prolog`` and ``epilog`` a scheduler's hook, ``bringup`` the
acceptance of a card that is not in service, ``hand`` a person's. All take the lock, yield to whoever comes
and are charged; only the first three are refused when the budget is spent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from flopwatch_agent import calibrations, ceilings, goldens
from flopwatch_agent.calibrate import calibrate_card
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_agent.probing.budget import Accounts, Run, budget_ms
from flopwatch_agent.probing.inbox import Inbox, Outcome, Record
from flopwatch_agent.probing.lock import Lock, Refused
from flopwatch_agent.probing.watch import Found
from flopwatch_agent.probing.witness import Witness
from flopwatch_kernels.calibration import Calibration
from flopwatch_kernels.probe import (
    ProbeError,
    ProbeLimits,
    ProbeResult,
    default_dtype,
    probe_kind,
    run_probe,
)

Policy = Literal["idle", "prolog", "epilog", "bringup", "hand"]
_BUDGETED: Final = ("idle", "prolog", "epilog")
_CARD: Final = re.compile(r"(?:cuda:)?(\d+|GPU-[0-9A-Za-z-]+)")
_CPU_SLOT: Final = "cpu"
_INSTALL: Final = "pip install"


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be probed, and within which bounds.

    Attributes:
        device: ``cpu``, ``cuda:N`` in PCI order, or a card's UUID.
        peer: the second card, for kinds that copy between two; it is locked and watched too.
        locks: directory of the locks.
        data: data directory of the host's agent: budget, ceilings, results. Empty: nothing is kept.
        measured: what is loaded; the device itself unless a rehearsal says otherwise.
    """

    device: str
    peer: str = ""
    kind: str = "gemm"
    dtype: str | None = None
    sustained: bool = False
    policy: Policy = "hand"
    wall_seconds: float = 120.0
    memory_bytes_max: int = 4 << 30
    niceness: int = 0
    budget_ratio: float = 0.001
    locks: str
    data: str = ""
    measured: str = ""

    @property
    def what(self) -> str:
        """Return what is measured, in words."""
        load = "sustained" if self.sustained else "burst"
        return f"{self.kind} {self.dtype or 'any'} {load}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of an order. Attributes: result: None unless it was measured; calibration: of an
    order for one."""

    record: Record
    result: ProbeResult | None
    calibration: Calibration | None = None


class Guard:
    """Runs orders, one after the other.

    Args:
        measure: `run_probe`, or what stands for it.
    """

    def __init__(self, clock: Clock, measure: Callable[..., ProbeResult] = run_probe) -> None:
        self._clock = clock
        self._measure = measure
        self._stop: str | None = None

    def stop(self, reason: str) -> None:
        """End the probe that runs; safe in a signal handler."""
        self._stop = reason

    def run(self, order: Order, on_progress: Callable[[Any], None] | None = None) -> Outcomes:
        """Probe, and keep the result where the order says.

        Raises:
            Refused: the card is somebody's, another probe runs, the budget is spent, or nothing can
                be kept. Nothing has touched the card then.
            UsageError: the result cannot be kept.
        """
        with self._witnessed(order) as witnesses:
            card = witnesses[0].card if witnesses else None
            name = _CPU_SLOT if card is None else card.uuid
            names = [witness.card.uuid for witness in witnesses] or [name]
            lock = Lock(Path(order.locks), *names)
            lock.take(order.what, self._clock.boottime_ns())
            try:
                if reason := self._reason(witnesses):
                    raise Refused(reason)
                with self._charged(order, name) as aborted:
                    found = self._probe(order, card, witnesses, on_progress)
                    aborted.append(found.record.outcome == "aborted")
            finally:
                lock.release(self._clock.boottime_ns())
        if order.data:
            _keep(Path(order.data), found)
        return found

    @contextmanager
    def _witnessed(self, order: Order) -> Iterator[list[Witness]]:
        """Watch the card and its peer; nobody yields a processor, which any process uses."""
        with contextlib.ExitStack() as stack:
            witnesses = []
            for device in (order.device, order.peer):
                if device in ("cpu", ""):
                    continue
                match = _CARD.fullmatch(device)
                if match is None:
                    raise Refused(f"{device!r} is no device: cpu, cuda:N or a card's UUID")
                witnesses.append(Witness(match[1]))
                stack.callback(witnesses[-1].close)
            yield witnesses

    @contextmanager
    def _charged(self, order: Order, name: str) -> Iterator[list[bool]]:
        """Charge the wall limit, and settle what was taken of it."""
        aborted: list[bool] = []
        if not order.data:
            yield aborted
            return
        accounts = Accounts(Path(order.data))
        start_unix_ms, began = wall_unix_ms(self._clock), self._clock.monotonic_seconds()
        wall_ms = round(order.wall_seconds * 1e3)
        run = Run(what=order.what, start_unix_ms=start_unix_ms, charged_ms=wall_ms)
        try:
            account = accounts.load(name)
            budget = budget_ms(order.budget_ratio)
            if order.policy in _BUDGETED and not account.affords(wall_ms, start_unix_ms, budget):
                spent = account.spent_ms(start_unix_ms) / 1e3
                raise Refused(
                    f"the card's budget is spent: {spent:.1f} s of {budget / 1e3:g} s in 8 h, "
                    f"and this probe may take {order.wall_seconds:g} s"
                )
            account = account.charged(run)
            accounts.save(name, account)
        except OSError as exc:
            raise Refused(f"the budget cannot be kept: {exc}") from exc
        try:
            yield aborted
        finally:
            took_ms = round((self._clock.monotonic_seconds() - began) * 1e3)
            accounts.save(name, account.settled(run, took_ms, aborted=any(aborted)))

    def _probe(
        self,
        order: Order,
        card: Found | None,
        witnesses: Sequence[Witness],
        on_progress: Callable[[Any], None] | None,
    ) -> Outcomes:
        start_unix_ms, began = wall_unix_ms(self._clock), self._clock.monotonic_seconds()
        result, calibration, outcome, reason = None, None, "ok", ""
        asked = {
            "limits": ProbeLimits(
                wall_seconds=order.wall_seconds,
                memory_bytes_max=order.memory_bytes_max,
                niceness=order.niceness,
            ),
            "on_progress": on_progress,
            "stop_reason": lambda: self._reason(witnesses),
        }
        try:
            if probe_kind(order.kind).load:
                calibration, result = self._calibrated(order, card, asked)
            else:
                result = self._measure(
                    kind=order.kind,
                    device=order.measured or ("cpu" if card is None else card.uuid),
                    peer=witnesses[1].card.uuid if order.peer else None,
                    dtype=order.dtype,
                    sustained=order.sustained,
                    **asked,
                )
            if order.data:
                result = goldens.screened(Path(order.data), result)
        except ProbeError as exc:
            reason = str(exc)
            if _INSTALL in reason:  # this host's matter, and no card's
                raise Refused(reason) from exc
            stopped = self._reason(witnesses)
            outcome, reason = ("aborted", stopped) if stopped else ("failed", reason)
        took = self._clock.monotonic_seconds() - began
        record = _record(order, card, start_unix_ms, took, result, outcome, reason)
        return Outcomes(record=record, result=result, calibration=calibration)

    def _calibrated(
        self, order: Order, card: Found | None, asked: Mapping[str, Any]
    ) -> tuple[Calibration, ProbeResult]:
        """Load the card and read its counters from this process, as the agent would."""
        if card is None:
            raise ProbeError("a processor has no counters to calibrate")
        dtype = order.dtype or default_dtype(probe_kind(order.kind), on_cpu=False)
        measured = order.measured
        return calibrate_card(
            card.uuid, dtype=dtype, measured=measured, measure=self._measure, **asked
        )

    def _reason(self, witnesses: Iterable[Witness]) -> str | None:
        reasons = (witness.stop_reason() for witness in witnesses)
        return self._stop or next((reason for reason in reasons if reason), None)


def record_of(result: ProbeResult) -> Record:
    """Return what the collector is told of a processor that was measured without a guard."""
    order = Order(
        device=_CPU_SLOT, kind=result.kind, dtype=result.dtype, sustained=result.sustained, locks=""
    )
    start_unix_ms = result.started_at_unix_ns // 1_000_000
    outcome, reason = result.outcome, result.reason or ""
    return _record(order, None, start_unix_ms, result.seconds or 0.0, result, outcome, reason)


def _record(
    order: Order,
    card: Found | None,
    start_unix_ms: int,
    seconds: float,
    result: ProbeResult | None,
    outcome: str,
    reason: str,
) -> Record:
    """Return what the collector is told. What a result says beside FLOP/s it says under these names."""
    said: Mapping[str, Any] = {} if result is None else msgspec.to_builtins(result)
    known = {
        name: value
        for name, value in said.items()
        if name in Record.__struct_fields__ and value is not None
    }
    known |= {
        "slot": _CPU_SLOT if card is None else card.slot,
        "start_unix_ms": start_unix_ms,
        "kind": order.kind,
        "dtype": known.get("dtype") or order.dtype or "",
        "sustained": order.sustained,
        "seconds": seconds,
        "result": dict(said) | {"policy": order.policy},
    }
    if outcome != "ok":
        known |= {"outcome": outcome, "reason": reason[:1000]}
    if card is not None:
        known["device_uuid"] = card.uuid
        for name in ("sku", "serial", "driver_version"):
            known[name] = getattr(card, name) or known.get(name, "")
    return msgspec.convert(known, Record)


def _keep(data: Path, found: Outcomes) -> None:
    """Leave the result, the ceiling of a product and the calibration to the agent."""
    record, result = found.record, found.result
    Inbox(data).put(record)
    if found.calibration is not None:
        calibrations.save(data, found.calibration)
    if result is not None and record.kind == "gemm" and record.outcome == "ok":
        ceilings.save(
            data,
            ceilings.Ceiling(
                device=record.device_uuid or _CPU_SLOT,
                dtype=record.dtype,
                flops=record.median_flops,
                sustained=record.sustained,
                taken_unix_ns=record.start_unix_ms * 1_000_000,
            ),
        )


__all__ = ["Guard", "Order", "Outcome", "Outcomes", "Policy", "Refused", "record_of"]
