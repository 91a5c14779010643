"""What becomes of a client that pings a quiet stream more often than the library's own default allows.

Agents ping, so as to notice a link that is cut. A server whose option for that has a wrong name ends
their streams after the third ping, with "too many pings". Here all is faster: a ping every fifth of a
second, twice as many allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc

_METHOD: Final = "/flopwatch.campaign/Quiet"
_CLIENT: Final = (
    ("grpc.keepalive_time_ms", 200),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


class _Quiet(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def serve(came: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for frame in came:
                yield frame

        return grpc.stream_stream_rpc_method_handler(serve)


async def outlives(options: Iterable[tuple[str, int]], quiet_seconds: float) -> bool:
    """Return whether a stream that pings lasts so long without a word, and is served after it."""
    faster = [(name, 100 if "_ping_interval_" in name else value) for name, value in options]
    server = grpc.aio.server(options=faster)
    server.add_generic_rpc_handlers((_Quiet(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_CLIENT) as channel:
            stub: Any = channel
            call = stub.stream_stream(_METHOD)()
            await call.write(b"before")
            assert await call.read() == b"before"
            reading = asyncio.create_task(call.read())
            await asyncio.wait({reading}, timeout=quiet_seconds)
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await call.write(b"after")
                return bool(await reading == b"after")
            with contextlib.suppress(grpc.RpcError):
                await reading
            return False
    finally:
        await server.stop(0)
