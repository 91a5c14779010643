"""Settings of what rules do not expect in use: `excused`."""

from __future__ import annotations

import re

import msgspec

from flopwatch_proto.errors import UsageError


class SparesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[excused.spares]]``: racks that need not be full.

    Attributes:
        cluster: a name.
        rack: a regular expression of nodes; its first group names the rack: ``(r[0-9]+)-.*``.
        cards_needed: of each rack; those beyond are spares, 8 where 64 of 72 are needed.
    """

    cluster: str
    rack: str
    cards_needed: int


class ReservationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[excused.reservation]]``. Attributes: name: of the scheduler, a shell pattern."""

    cluster: str
    name: str


class ExcusedConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section ``[excused]``: cards that rules do not expect in use."""

    spares: tuple[SparesConfig, ...] = ()
    reservation: tuple[ReservationConfig, ...] = ()


def validate(config: ExcusedConfig) -> None:
    """Check the patterns. Raises: UsageError naming the key and the fix."""
    for number, spares in enumerate(config.spares):
        key = f"excused.spares[{number}]"
        try:
            groups = re.compile(spares.rack).groups
        except re.error as exc:
            raise UsageError(f"{key}.rack is no regular expression: {exc}") from exc
        if not groups:
            raise UsageError(f"{key}.rack names no rack; put it in brackets: (r[0-9]+)-.*")
        if spares.cards_needed < 0:
            raise UsageError(f"{key}.cards_needed must be 0 or more")
