"""A fake Kubernetes API server: lists of objects in pages, behind a bearer's token. It is no Kubernetes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Objects = Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class FakeKubernetes:
    """What it lists, and how it misbehaves.

    Attributes:
        lists: path → objects; any other path answers 404.
        page: objects per page, whatever is asked for.
        expire: how many pages after a first one answer 410 Gone.
        refuse: status of every answer; None: as it should be.
        asked: the paths asked for, in order.
    """

    lists: dict[str, Objects] = field(default_factory=dict)
    token: str = "secret"
    page: int = 500
    expire: int = 0
    refuse: int | None = None
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, target: str, authorization: str) -> tuple[int, dict[str, Any]]:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        self.asked.append(path)
        if authorization != f"Bearer {self.token}":
            return 401, {"kind": "Status", "message": "Unauthorized"}
        if self.refuse is not None:
            return self.refuse, {"kind": "Status", "message": "not today"}
        if path not in self.lists:
            return 404, {"kind": "Status", "message": "the server could not find it"}
        at = int(query.get("continue", ["0"])[0])
        if at and self.expire:
            self.expire -= 1
            return 410, {"kind": "Status", "message": "the continue token expired"}
        end = at + min(self.page, int(query["limit"][0]))
        items = self.lists[path]
        more = {"continue": str(end)} if end < len(items) else {}
        return 200, {"kind": "List", "metadata": more, "items": list(items[at:end])}


@contextmanager
def serving(fake: FakeKubernetes) -> Iterator[FakeKubernetes]:
    """Serve it on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = fake.answer(self.path, self.headers.get("Authorization", ""))
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


def node(name: str, *, cards: int = 8, allocatable: int | None = None, ready: str = "True",
         cordoned: bool = False, labels: Mapping[str, str] | None = None) -> dict[str, Any]:  # fmt: skip
    """Return a node with a device plugin's cards; 0: without one."""
    of = {"cpu": "64", "memory": "1Ti"}
    plugin = {"nvidia.com/gpu": str(cards)} if cards else {}
    left = {"nvidia.com/gpu": str(cards if allocatable is None else allocatable)} if cards else {}
    return {
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {"unschedulable": True} if cordoned else {},
        "status": {
            "capacity": of | plugin,
            "allocatable": of | left,
            "conditions": [{"type": "Ready", "status": ready, "reason": "KubeletReady"}],
        },
    }


def pod(name: str, *, on: str = "", cards: int = 0, phase: str = "Running", namespace: str = "ml",
        cpus: str = "1", claims: Sequence[str] = (), resource: str = "nvidia.com/gpu",
        waits: bool = False) -> dict[str, Any]:  # fmt: skip
    """Return a pod, bound where ``on`` names a node; ``waits``: the scheduler found no place for it."""
    wanted = {"cpu": cpus, "memory": "1Gi"} | ({resource: str(cards)} if cards else {})
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
        "spec": {
            **({"nodeName": on} if on else {}),
            "containers": [{"name": "main", "resources": {"requests": wanted}}],
            "resourceClaims": [{"name": c, "resourceClaimName": c} for c in claims],
        },
        "status": {"phase": phase, "conditions": [scheduled] if waits else []},
    }


def claim(name: str, *devices: str, pool: str = "n0", namespace: str = "ml") -> dict[str, Any]:
    """Return a claim for one card; allocated where devices are named."""
    results = [{"driver": "gpu.nvidia.com", "pool": pool, "device": d} for d in devices]
    asked = [{"name": "card", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 1}}]
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"devices": {"requests": asked}},
        "status": {"allocation": {"devices": {"results": results}}} if devices else {},
    }


def resource_slice(
    of: str, uuids: Mapping[str, str], *, generation: int = 1, kind: str = "gpu"
) -> dict[str, Any]:
    """Return a node's slice: device → UUID."""
    devices = [
        {"name": n, "attributes": {"uuid": {"string": u}, "type": {"string": kind}}}
        for n, u in uuids.items()
    ]
    pool = {"name": of, "generation": generation, "resourceSliceCount": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": of, "pool": pool, "devices": devices}
    return {"metadata": {"name": f"{of}-{generation}"}, "spec": spec}
