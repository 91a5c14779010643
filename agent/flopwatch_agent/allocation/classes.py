"""The workload class of a holder, by the ordered rules of ``[[classes]]``. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from flopwatch_agent.allocation.holders import Holder
from flopwatch_agent.config import ClassRule


def classify(rules: Sequence[ClassRule], holder: Holder) -> str | None:
    """Return the class of the first rule whose every pattern fits; None where none does."""
    for rule in rules:
        said = (
            (rule.partition, holder.partition),
            (rule.qos, holder.qos),
            (rule.namespace, holder.namespace),
            (rule.team, holder.team),
        )
        if all(not glob or (text and fnmatchcase(text, glob)) for glob, text in said):
            return rule.workload_class
    return holder.workload_class
