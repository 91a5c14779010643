"""How `top` looks: the agent's answer as lines and tables. Pure but for asking who a process is.

80 columns hold what matters; from `WIDE_COLUMNS` on the rest is there too. What is not known is a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flopwatch.cli import number
from flopwatch.cli.bottleneck import hint, throttle
from flopwatch_agent.estimate import Estimate
from flopwatch_agent.now import CardNow, DeliveryNow, Holder, HostNow, Now

WIDE_COLUMNS: Final = 120
PROCESSES_SHOWN: Final = 32
BAD: Final = "bold #d04e20"
DIM: Final = "dim"
LEGEND: Final = (
    "HFU %: what the tensor pipes did of the dense peak, whatever for; it is not MFU. "
    "MFU %: as jobs declare it, else its bounds. The figures are of the newest second."
)
_OTHER_ROWS: Final = 15
"""What the cards and the processes leave of a terminal: lines above, heads, blanks, the legend."""

_LATE: Final = " Activity comes from DCGM here: means that may be a collect interval old."
_MIB: Final = 2.0**20
_GIB: Final = 2.0**30
_ALLOCATED: Final = frozenset({"ACTIVE", "IDLE_ALLOC", "SUSPENDED", "GANG_WAIT", "ALLOCATED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """A process as this host knows it; None where it has gone or may not be seen."""

    user: str | None
    command: str | None


def screen(now: Now, width: int, who: Callable[[int], Who], rows: int | None = None) -> Group:
    """Return everything.

    Args:
        width: of the terminal, columns.
        who: pid → whose process it is.
        rows: of the terminal; None: as many as it takes.
    """
    wide = width >= WIDE_COLUMNS
    parts: list[RenderableType] = [_title(now), *_host(now.host), *_delivery(now), Text()]
    parts.append(_cards(now.cards, wide=wide) if now.cards else Text("no card, no processor", DIM))
    left = PROCESSES_SHOWN if rows is None else rows - len(now.cards) - _OTHER_ROWS
    processes = _processes(now.cards, who, left)
    if processes is not None:
        parts += [Text(), processes]
    late = any(card.method == "dcgm" and card.values for card in now.cards)
    parts += [Text(), Text(LEGEND + _LATE * late, DIM)]
    return Group(*parts)


def silence(text: str) -> Text:
    """Return what is shown in place of numbers that would be old."""
    return Text(text, BAD)


def _title(now: Now) -> Text:
    taken = datetime.fromtimestamp(now.taken_unix_ms / 1000, UTC)
    text = Text.assemble((now.node, "bold"), f" · {now.cluster} · {taken:%H:%M:%S} UTC")
    if now.simulated:
        text.append(" · SIM", "bold #6d3b93")
    driver = now.driver_state
    if driver and driver != "ok":
        text.append(f" · driver {driver}", BAD)
    elif driver:
        text.append(" · driver ok")
    return text


def _host(host: HostNow | None) -> Iterable[Text]:
    if host is None:
        yield Text("host: not read yet", DIM)
        return
    memory = f"{_gib(host.memory_used_bytes)}/{_gib(host.memory_total_bytes)} GiB"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"cpu {number.percent(host.cpu_busy_ratio)} % of {_whole(host.cpu_count)}")
    text.append(f" · memory {memory}")
    text.append(f" · agent {number.percent(host.agent_cpu_cores, decimals=2)} % of a core, ")
    text.append(f"{_whole(host.agent_rss_bytes, 1 / _MIB)} MiB")
    yield text
    net = _both(host.nic_tx_bytes_per_second, host.nic_rx_bytes_per_second)
    rdma = _both(host.rdma_tx_bytes_per_second, host.rdma_rx_bytes_per_second)
    text = Text(f"MB/s out/in: network {net} · RDMA {rdma}", no_wrap=True, overflow="ellipsis")
    if host.link_errors_per_second:
        errors = number.quantity(host.link_errors_per_second)
        text.append(f" · {errors} link errors/s", BAD)
    yield text


def _delivery(now: Now) -> Iterable[Text]:
    """Whether what the agent measures arrives."""
    delivery = now.delivery
    text = Text(f"collector {_plain(delivery.collector)} ", no_wrap=True, overflow="ellipsis")
    text.append("connected" if delivery.connected else "away", "" if delivery.connected else BAD)
    text.append(f" · {_waiting(delivery)}")
    if delivery.dropped_rows:
        text.append(f" · {delivery.dropped_rows:,} rows lost", BAD)
    if delivery.degraded:
        text.append(" · the spool's disk refuses", BAD)
    yield text
    if delivery.error and not delivery.connected:
        yield Text(_plain(delivery.error), DIM, no_wrap=True, overflow="ellipsis")


def _waiting(delivery: DeliveryNow) -> str:
    if not delivery.pending_batches:
        return "nothing to send"
    return f"{delivery.pending_batches:,} to send, {delivery.pending_bytes / _MIB:.1f} MiB"


def _cards(cards: Sequence[CardNow], *, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, expand=wide)
    for name, least in (("card", 7), ("job", 4)):
        table.add_column(name, no_wrap=True, min_width=least, overflow="ellipsis")
    if wide:
        table.add_column("team", no_wrap=True, overflow="ellipsis")
        table.add_column("user", no_wrap=True, overflow="ellipsis")
    figures = ["SM %", "tensor %", "DRAM %"] if wide else ["SM", "TC"]
    figures += ["HFU %", "MFU %", "GiB", "W", "MHz", "°C"]
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("hint", no_wrap=True)
    if wide:
        table.add_column("clock held by", no_wrap=True, overflow="ellipsis")
    for card in cards:
        table.add_row(*_row(card, wide=wide), style=DIM if _is_quiet(card) else "")
    return table


def _row(card: CardNow, *, wide: bool) -> list[RenderableType]:
    values, found = card.values, card.estimate
    held = _held(card.holders)
    cells: list[RenderableType] = [_place(card.slot), _job(card.holders)]
    if wide:
        cells += [_all(h.team for h in held), _all(h.user for h in held)]
    if card.failure is not None:
        blanks = [number.UNKNOWN] * (9 if wide else 8)
        return [*cells, *blanks, Text(card.failure.replace("_", " "), BAD), *([""] * wide)]
    for name in ("sm", "tensor", "dram") if wide else ("sm", "tensor"):
        cells.append(_whole(values.get(f"{name}_active_ratio"), 100.0))
    clock, most = _whole(values.get("sm_clock_mhz")), _whole(card.clock_mhz_max)
    watts, limit = _whole(values.get("power_watts")), _whole(values.get("power_limit_watts"))
    used = _gib(values.get("memory_used_bytes"))
    cells += [
        _hfu(found),
        number.span(found.mfu_lo, found.mfu_hi, found.mfu),
        f"{used}/{_gib(values.get('memory_total_bytes'))}",
        f"{watts}/{limit}",
        f"{clock}/{most}" if wide else clock,
        _whole(values.get("temperature_celsius")),
    ]
    said = hint(values, card.clock_mhz_max) if card.kind == "gpu" else None
    cells.append(Text(said or number.UNKNOWN, BAD if said == "throttled" else ""))
    if wide:
        reason = throttle(values.get("clock_event_reasons"))
        cells.append(number.UNKNOWN if reason is None else reason)
    return cells


def _hfu(found: Estimate) -> str:
    """``43.2±1.0`` where the reference clock is known, else bounds."""
    if found.hfu is None or found.hfu_lo is None or found.hfu_hi is None:
        return number.span(found.hfu_lo, found.hfu_hi)
    return f"{number.percent(found.hfu)}±{50 * (found.hfu_hi - found.hfu_lo):.1f}"


def _processes(cards: Sequence[CardNow], who: Callable[[int], Who], rows: int) -> Table | None:
    """Return who runs what, the largest first on each card; None where nobody runs anything."""
    found = [
        (card, process)
        for card in cards
        for process in sorted(card.processes or (), key=lambda p: -(p.memory_bytes or 0))
    ]
    if not found or rows <= 0:
        return None
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("card", no_wrap=True, min_width=7)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("user", no_wrap=True, overflow="ellipsis")
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("command", no_wrap=True, overflow="ellipsis")
    for card, process in found[:rows]:
        owner = who(process.pid)
        table.add_row(
            _place(card.slot),
            str(process.pid),
            owner.user or number.UNKNOWN,
            _gib(process.memory_bytes),
            _plain(owner.command) if owner.command else number.UNKNOWN,
        )
    if len(found) > rows:
        table.add_row("", "", "", "", f"and {len(found) - rows} more")
    return table


def _held(holders: Sequence[Holder]) -> list[Holder]:
    return [holder for holder in holders if holder.bucket in _ALLOCATED]


def _job(holders: Sequence[Holder]) -> Text:
    held = _held(holders)
    if not held:
        bucket = holders[0].bucket if holders else number.UNKNOWN
        return Text(bucket.lower(), DIM)
    text = Text(_all(holder.job for holder in held))
    if any(holder.rogue for holder in held):
        text.append(" rogue", BAD)
    return text


def _all(names: Iterable[str | None]) -> str:
    """Return every name once, in order."""
    return ", ".join(dict.fromkeys(_plain(name) for name in names if name)) or number.UNKNOWN


def _plain(text: str) -> str:
    """Return the text without what a terminal obeys: names and command lines are other people's."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _is_quiet(card: CardNow) -> bool:
    return card.failure is None and not _held(card.holders)


def _place(slot: str) -> str:
    return slot.removeprefix("0000:")


def _whole(value: float | None, scale: float = 1.0) -> str:
    return number.UNKNOWN if value is None else f"{value * scale:.0f}"


def _gib(count: float | None) -> str:
    return number.UNKNOWN if count is None else f"{count / _GIB:.0f}"


def _both(out: float | None, back: float | None) -> str:
    """Return ``12/40``, or one dash where there is no such link."""
    if out is None and back is None:
        return number.UNKNOWN
    return f"{_whole(out, 1e-6)}/{_whole(back, 1e-6)}"
