"""What flopwatch itself lacks, a line each on the front page: certificates that end, agents that are refused.

The figures may be whole today and blind tomorrow: a certificate that was not renewed ends without another
word, and a node that is refused is only one agent fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from flopwatch_collector.audit.books import Books
from flopwatch_collector.trust.records import LIFE_LEFT_MIN, refused
from flopwatch_collector.web import wording
from flopwatch_collector.web.sources import Sources

KEPT_S: Final = 60.0
REFUSED_MS: Final = 3_600_000
"""Refusals of the last hour: a host that is still there is written again every minute it tries."""
NAMED_MAX: Final = 3
_EXPIRES: Final = "flopwatch_trust_certificate_expires_seconds"
_LIFE: Final = "flopwatch_trust_certificate_life_ratio"

Record = Mapping[str, Any]


def trouble(
    agents: Sequence[Record], metrics: str, refusals: Sequence[Record], now_unix_ms: int
) -> list[dict[str, str]]:
    """Return a line for each kind of trouble: ``words``, ``names`` (text of others) and ``fix``. Pure.

    Args:
        agents: the records of `agents.Agents`; metrics: of this collector, as Prometheus text.
        refusals: those of the last hour, the newest first.
    """
    lines = []
    ending = sorted(
        (left, f"{agent['cluster']}/{agent['node']}")
        for agent in agents
        if (left := life_left(agent, now_unix_ms)) is not None and left <= LIFE_LEFT_MIN
    )
    if ending:
        least = wording.percent(ending[0][0], decimals=0)
        lines.append(
            {
                "words": f"{_count(len(ending), 'certificate')} of nodes with a quarter of life or less "
                f"left, the oldest {least} %",
                "names": _names([name for _, name in ending]),
                "fix": "flopwatch doctor, on the node",
            }
        )
    own = _own_certificate(metrics)
    if own is not None:
        lines.append({"words": own, "names": "", "fix": "look at the collector's log"})
    hosts = list(dict.fromkeys(refusal["subject"] for refusal in refusals))
    if hosts:
        lines.append(
            {
                "words": f"{_count(len(hosts), 'agent')} refused in the last hour",
                "names": _names(hosts),
                "fix": "flopwatch trust refused",
            }
        )
    return lines


def life_left(agent: Record, now_unix_ms: int) -> float | None:
    """Return which share of its certificate's life an agent has left; None: it showed none."""
    starts, ends = (agent.get(f"certificate_{end}_unix_ms") for end in ("starts", "expires"))
    if starts is None or ends is None or ends <= starts:
        return None
    return float(max(0, ends - now_unix_ms) / (ends - starts))


def of_books(books: Sequence[Books]) -> list[dict[str, str]]:
    """Return the line for nodes whose rows are not all accounted for, where there are any. Pure."""
    wrong = [f"{of.cluster}/{node}" for of in books if not of.simulated for node in of.wrong]
    if not wrong:
        return []
    count = sum(of.unbalanced or 0 for of in books if not of.simulated)
    words = f"the audit of {_count(count, 'node')} does not balance"
    return [{"words": words, "names": _names(wrong, count), "fix": "flopwatch audit"}]


def seen(sources: Sources, agents: Sequence[Record]) -> list[dict[str, str]]:
    """Return the lines of now.

    Raises:
        RetryableError: the collector or the control store does not answer.
    """
    now = sources.now_unix_ms()
    refusals = refused(sources.control.store(), now - REFUSED_MS)
    return trouble(agents, sources.collector.metrics(), refusals, now)


def _own_certificate(metrics: str) -> str | None:
    """Return what is wrong with the listener's certificate; None: nothing, or there is none."""
    found = {
        family.name: family.samples[0].value
        for family in text_string_to_metric_families(metrics)
        if family.name in (_EXPIRES, _LIFE) and family.samples
    }
    left, seconds = found.get(_LIFE, math.nan), found.get(_EXPIRES, math.nan)
    if math.isnan(left) or math.isnan(seconds) or left > LIFE_LEFT_MIN:
        return None
    if seconds <= 0:
        return "the certificate of the collector is over: agents turn away"
    return f"the certificate of the collector holds {wording.length(seconds)} more, and was not renewed"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _names(names: Sequence[str], count: int | None = None) -> str:
    more = (len(names) if count is None else count) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more:,} more" if more > 0 else "")
