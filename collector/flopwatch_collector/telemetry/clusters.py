"""Which clusters are simulated. Real and simulated nodes never share a cluster."""

from __future__ import annotations

import asyncio
import contextlib

from flopwatch_collector.telemetry import Reader
from flopwatch_proto.errors import RetryableError


class ClusterKinds:
    """Which clusters are simulated; a cluster is all simulated or not at all."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._simulated: dict[str, bool] = {}

    async def is_simulated(self, cluster: str, when_new: bool) -> bool:
        """Return what a cluster is; one that nobody knows becomes what its first node is."""
        if cluster not in self._simulated:
            with contextlib.suppress(RetryableError):
                found = await asyncio.to_thread(
                    self._reader.query,
                    "SELECT simulated FROM receipt WHERE cluster = {cluster:String} LIMIT 1",
                    {"cluster": cluster},
                )
                for simulated in found["simulated"].to_pylist():
                    self._simulated.setdefault(cluster, bool(simulated))
        return self._simulated.setdefault(cluster, when_new)
