"""Shorter patience, for campaigns that have no half minute for each connection that is dead."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from flopwatch_agent import channel
from flopwatch_collector import ingest, listen

_KEYS: Final = {
    "grpc.keepalive_time_ms": 1.0,
    "grpc.keepalive_timeout_ms": 0.5,
    "grpc.http2.ping_timeout_ms": 0.5,
    "grpc.http2.settings_timeout": 0.5,
    "grpc.http2.min_ping_interval_without_data_ms": 0.5,
}


def shorten(seconds: float) -> None:
    """Ping after so long and wait half of it for the answer, on either side in this process.

    A Hello is awaited as long.
    """
    ingest.HELLO_SECONDS = seconds  # type: ignore[misc]
    listen.SERVER_OPTIONS = tuple(  # type: ignore[misc, assignment]
        (name, round(1_000 * seconds * _KEYS[name]) if name in _KEYS else value)
        for name, value in listen.SERVER_OPTIONS
    )
    channel.CONFIGURATION = replace(  # type: ignore[misc]
        channel.CONFIGURATION,
        _keepalive_time=seconds,
        _keepalive_timeout=seconds / 2,
        _http2_min_sent_ping_interval_without_data=seconds / 2,
    )
