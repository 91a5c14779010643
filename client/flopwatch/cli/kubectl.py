"""Kubernetes asked by the operator's own `kubectl`: its context, its rights. I/O."""

from __future__ import annotations

import subprocess
from typing import Final, TypeVar

import msgspec

from flopwatch_collector.roster.answers import NotAnsweredError
from flopwatch_collector.roster.kubernetes import Listed
from flopwatch_collector.roster.kubernetes_layout import Claim, Node, Pod, Slice

DEADLINE_SECONDS: Final = 60.0
_NO_SUCH_KIND: Final = "the server doesn't have a resource type"

T = TypeVar("T")


class _Items(msgspec.Struct, frozen=True):
    items: list[msgspec.Raw] = []


def listed() -> Listed:
    """Return nodes, pods and claims as they are now; a cluster without claims has none.

    Raises:
        NotAnsweredError: kubectl is not there, fails, or says something else.
    """
    return Listed(
        nodes=_get(Node, "nodes"),
        pods=_get(Pod, "pods", "--all-namespaces"),
        claims=_get(Claim, "resourceclaims.resource.k8s.io", "--all-namespaces", optional=True),
        slices=_get(Slice, "resourceslices.resource.k8s.io", optional=True),
    )


def _get(kind: type[T], name: str, *more: str, optional: bool = False) -> list[T]:
    command = ("kubectl", "get", name, *more, "--output=json")
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=DEADLINE_SECONDS
        )
    except OSError as exc:
        raise NotAnsweredError(f"kubectl cannot be run: {exc.strerror}") from exc
    except subprocess.TimeoutExpired:
        raise NotAnsweredError(
            f"{' '.join(command)}: no answer within {DEADLINE_SECONDS:g} s"
        ) from None
    if done.returncode:
        complaint = done.stderr.decode(errors="replace").strip()
        if optional and _NO_SUCH_KIND in complaint:
            return []
        last = complaint.splitlines()[-1][:300] if complaint else f"ended with {done.returncode}"
        raise NotAnsweredError(f"{' '.join(command)}: {last}")
    try:
        items = msgspec.json.decode(done.stdout, type=_Items).items
        return [msgspec.json.decode(item, type=kind) for item in items]
    except msgspec.DecodeError as exc:
        raise NotAnsweredError(f"{' '.join(command)}: not as expected: {exc}") from exc
