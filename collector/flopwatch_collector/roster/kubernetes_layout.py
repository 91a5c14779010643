"""The Kubernetes API's JSON, as far as cards go: nodes, pods, claims, slices. Pure.

- Pods hold cards from their binding on (``spec.nodeName``), whatever their phase, until they ended.
- What a pod requests is the larger of its containers together and of each init container alone; init
  containers that restart always run beside the containers.
- Quantities are written ``500m``, ``16Gi``, ``1e3``.
- A claim of dynamic resource allocation names the device it got: (driver, pool, device); the slices of its
  driver say which card that is. Only slices of a pool's newest generation count. Devices stand in a slice
  directly (v1, v1beta2) or under ``basic`` (v1beta1), requests under ``exactly`` or directly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

_CARDS: Final = re.compile(r"[a-z0-9.-]+/gpu")
_PARTS: Final = re.compile(r"[a-z0-9.-]+/(gpu\..+|mig-.+)")
_QUANTITY: Final = re.compile(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)")
_SUFFIXES: Final = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip
PRODUCT: Final = "nvidia.com/gpu.product"
"""The label by which nodes name their type of card, and pods insist on one."""

Resources = Mapping[str, str | int]


class _Struct(msgspec.Struct, frozen=True, rename="camel"):
    """An object of the API: what is not named here is not read."""


class Meta(_Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] = {}


class Condition(_Struct, frozen=True):
    type: str = ""
    status: str = ""
    reason: str = ""


class _NodeSpec(_Struct, frozen=True):
    unschedulable: bool = False


class _NodeStatus(_Struct, frozen=True):
    capacity: dict[str, str | int] = {}
    allocatable: dict[str, str | int] = {}
    conditions: list[Condition] = []


class Node(_Struct, frozen=True):
    metadata: Meta
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()

    @property
    def ready(self) -> bool:
        """Whether its kubelet says, and the control plane believes, that it works."""
        return any(c.type == "Ready" and c.status == "True" for c in self.status.conditions)


class _Requests(_Struct, frozen=True):
    requests: dict[str, str | int] = {}
    limits: dict[str, str | int] = {}


class _Container(_Struct, frozen=True):
    resources: _Requests = _Requests()
    restart_policy: str = ""


class _PodClaim(_Struct, frozen=True):
    name: str = ""
    resource_claim_name: str | None = None


class _PodSpec(_Struct, frozen=True):
    node_name: str = ""
    node_selector: dict[str, str] = {}
    containers: list[_Container] = []
    init_containers: list[_Container] = []
    resource_claims: list[_PodClaim] = []


class _PodStatus(_Struct, frozen=True):
    phase: str = ""
    conditions: list[Condition] = []
    resource_claim_statuses: list[_PodClaim] = []


class Pod(_Struct, frozen=True):
    metadata: Meta
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()

    @property
    def job(self) -> str:
        """Its name, as flopwatch calls the job."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def claims(self) -> frozenset[str]:
        """The names of its claims, as far as they were made."""
        of = (*self.spec.resource_claims, *self.status.resource_claim_statuses)
        return frozenset(c.resource_claim_name for c in of if c.resource_claim_name)

    @property
    def ended(self) -> bool:
        """Whether it holds nothing any more."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def waits(self) -> bool:
        """Whether the scheduler found no place for it; one that is gated or just made does not wait yet."""
        return not self.spec.node_name and any(
            c.type == "PodScheduled" and c.status == "False" and c.reason == "Unschedulable"
            for c in self.status.conditions
        )

    def wants(self, resource: re.Pattern[str] | str) -> float:
        """Return how much of a resource, or of all that match, it requests."""
        beside = sum(
            _requested(c, resource)
            for c in (
                *self.spec.containers,
                *(c for c in self.spec.init_containers if c.restart_policy == "Always"),
            )
        )
        return max([beside, *(_requested(c, resource) for c in self.spec.init_containers)])

    @property
    def cards(self) -> float:
        """Whole cards that it requests of a device plugin."""
        return self.wants(_CARDS)

    @property
    def parts(self) -> float:
        """Parts of cards (MIG, shared) that it requests."""
        return self.wants(_PARTS)


class Result(_Struct, frozen=True):
    driver: str = ""
    pool: str = ""
    device: str = ""

    @property
    def is_card(self) -> bool:
        """Whether a driver for cards gave it, and not one for networks or the like."""
        return "gpu" in self.driver


class _Devices(_Struct, frozen=True):
    results: list[Result] = []


class _Allocation(_Struct, frozen=True):
    devices: _Devices = _Devices()


class _Consumer(_Struct, frozen=True):
    resource: str = ""
    name: str = ""
    uid: str = ""


class _Exactly(_Struct, frozen=True):
    count: int = 1
    device_class_name: str = ""


class _DeviceRequest(_Struct, frozen=True):
    exactly: _Exactly | None = None
    count: int = 1
    device_class_name: str = ""


class _DeviceRequests(_Struct, frozen=True):
    requests: list[_DeviceRequest] = []


class _ClaimSpec(_Struct, frozen=True):
    devices: _DeviceRequests = _DeviceRequests()


class _ClaimStatus(_Struct, frozen=True):
    allocation: _Allocation | None = None
    reserved_for: list[_Consumer] = []


class Claim(_Struct, frozen=True):
    metadata: Meta
    spec: _ClaimSpec = _ClaimSpec()
    status: _ClaimStatus = _ClaimStatus()


class _Pool(_Struct, frozen=True):
    name: str = ""
    generation: int = 0


class _Basic(_Struct, frozen=True):
    attributes: dict[str, dict[str, Any]] = {}


class Device(_Struct, frozen=True):
    name: str = ""
    attributes: dict[str, dict[str, Any]] = {}
    basic: _Basic | None = None

    def texts(self) -> frozenset[str]:
        """Return every text among its attributes: UUID, PCI address, type."""
        found = self.basic.attributes if self.basic is not None else self.attributes
        return frozenset(str(v["string"]).lower() for v in found.values() if "string" in v)


class _SliceSpec(_Struct, frozen=True):
    driver: str = ""
    node_name: str = ""
    pool: _Pool = _Pool()
    devices: list[Device] = []


class Slice(_Struct, frozen=True):
    metadata: Meta
    spec: _SliceSpec = _SliceSpec()


def devices_of(slices: Iterable[Slice]) -> dict[tuple[str, str, str], tuple[str, Device]]:
    """Return (driver, pool, device) → (node, device), of each pool's newest generation."""
    newest: dict[tuple[str, str], int] = {}
    listed = list(slices)
    for one in listed:
        pool = one.spec.driver, one.spec.pool.name
        newest[pool] = max(newest.get(pool, 0), one.spec.pool.generation)
    return {
        (one.spec.driver, one.spec.pool.name, device.name): (one.spec.node_name, device)
        for one in listed
        if one.spec.pool.generation == newest[one.spec.driver, one.spec.pool.name]
        for device in one.spec.devices
    }


def amount(value: str | int | None) -> float:
    """Return a quantity as a number; 0 where it is none."""
    found = _QUANTITY.fullmatch(str(value or 0))
    if found is None or found[2] not in _SUFFIXES:
        return 0.0
    try:
        return float(found[1]) * _SUFFIXES[found[2]]
    except ValueError:
        return 0.0


def cards_in(resources: Resources) -> float:
    """Return the whole cards among a node's resources."""
    return sum(amount(v) for name, v in resources.items() if _CARDS.fullmatch(name))


def parts_in(resources: Resources) -> float:
    """Return the parts of cards among a node's resources."""
    return sum(amount(v) for name, v in resources.items() if _PARTS.fullmatch(name))


def wanted_cards(claims: Iterable[Claim]) -> int:
    """Return how many cards claims ask for, by the names of device classes."""
    asked = [r.exactly or r for claim in claims for r in claim.spec.devices.requests]
    return sum(of.count for of in asked if "gpu" in of.device_class_name)


def _requested(container: _Container, resource: re.Pattern[str] | str) -> float:
    of = container.resources.limits | container.resources.requests
    if isinstance(resource, str):
        return amount(of.get(resource))
    return sum(amount(v) for name, v in of.items() if resource.fullmatch(name))
