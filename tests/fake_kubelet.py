"""A kubelet's PodResources service over a unix socket, by script: real gRPC, the API's own messages."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc

from flopwatch_agent.podresources import message


def pod(
    namespace: str,
    name: str,
    *device_ids: str,
    resource: str = "nvidia.com/gpu",
    claims: Iterable[tuple[str, str, str]] = (),
) -> Any:
    """Return a pod of one container.

    Args:
        device_ids: of a device plugin.
        claims: (driver, pool, device) of dynamic resources.
    """
    devices = [message("ContainerDevices")(resource_name=resource, device_ids=device_ids)]
    dynamic = [
        message("DynamicResource")(
            claim_name="claim",
            claim_namespace=namespace,
            claim_resources=[
                message("ClaimResource")(driver_name=d, pool_name=p, device_name=n)
                for d, p, n in claims
            ],
        )
    ]
    container = message("ContainerResources")(
        name="main", devices=devices if device_ids else [], dynamic_resources=dynamic
    )
    return message("PodResources")(name=name, namespace=namespace, containers=[container])


class FakeKubelet:
    """Serves ``pods``.

    Attributes:
        known: pods that Get knows; None: Get is UNIMPLEMENTED, as in older kubelets.
        silent: while set, nothing is answered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pods: list[Any] = []
        self.known: set[tuple[str, str]] | None = None
        self.silent = False
        self.lists = 0
        self.gets = 0
        self._server: Any = None

    async def __aenter__(self) -> FakeKubelet:
        self._server = grpc.aio.server()
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(self, f"_{name.lower()}"),
                request_deserializer=message(f"{request}Request").FromString,
                response_serializer=message(f"{request}Response").SerializeToString,
            )
            for name, request in (("List", "ListPodResources"), ("Get", "GetPodResources"))
        }
        service = grpc.method_handlers_generic_handler("v1.PodResourcesLister", handlers)
        self._server.add_generic_rpc_handlers((service,))
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def _list(self, request: Any, context: Any) -> Any:
        self.lists += 1
        while self.silent:
            await asyncio.sleep(0.01)
        return message("ListPodResourcesResponse")(pod_resources=self.pods)

    async def _get(self, request: Any, context: Any) -> Any:
        self.gets += 1
        if self.known is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method Get")
        if (request.pod_namespace, request.pod_name) not in (self.known or ()):
            await context.abort(grpc.StatusCode.NOT_FOUND, "pod not found")
        return message("GetPodResourcesResponse")()
