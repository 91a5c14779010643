"""Kubernetes, seen from its node: what the kubelet says that it handed to which pod.

The kubelet's ``List`` names pods by namespace and name, processes name them by uid: the folder of pod logs
(``<namespace>_<name>_<uid>``) tells one from the other. Rules:

- A pod holds its cards from binding on, before any process exists. It is over when its control group is
  gone, or, where it never had one that we saw, when `BINDING_MS` have passed or the kubelet no longer knows
  it: ``List`` may name terminated pods (kubernetes/kubernetes#132020).
- Device ids: ``GPU-…``, ``MIG-…``, replicas ``GPU-…::3`` (time slicing, MPS: pods share the card by
  replicas held), and GKE's ``nvidia3``, by minor number. Claims (DRA) name devices as NVIDIA's driver
  does: ``gpu-<minor>``.
- A name that nobody can place is said and makes its pod *unplaced*; it is not guessed.
- A pod that runs slurmd of its own yields to what Slurm says.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError

from flopwatch_agent.access import Access
from flopwatch_agent.allocation import cgroup
from flopwatch_agent.allocation.holders import MINOR, UUID, Holder, Place, SilentError, Word, told
from flopwatch_agent.clock import Clock, wall_unix_ms
from flopwatch_agent.labels import clean_text
from flopwatch_agent.podresources import message
from flopwatch_proto.v1 import telemetry_pb2 as pb

BINDING_MS: Final = 60_000
"""How long a pod may hold cards and have no control group yet."""

SLURMD_MS: Final = 60_000
"""How long it is believed whether a pod runs slurmd."""

POD_LOGS: Final = Path("/var/log/pods")

_PODS_MAX: Final = 4_096
_PIDS_MAX: Final = 64
_NVIDIA_ID: Final = re.compile(r"((?:gpu|mig)-[0-9a-f][0-9a-f/-]+)(?:::\d+)?", re.IGNORECASE)
_GKE_ID: Final = re.compile(r"nvidia(\d{1,3})(?:/vgpu\d+)?")
_DRA_CARD: Final = re.compile(r"gpu-(\d{1,3})")
_DRA_UUID: Final = re.compile(r"gpu-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

Pod = tuple[str, str]
"""(namespace, name)."""


@dataclass(slots=True, kw_only=True)
class _Known:
    """What is remembered of a pod. Attributes: grouped: it had a control group."""

    first_ms: float
    grouped: bool = False
    slurmd: bool = False
    slurmd_ms: float | None = None


class Kubernetes:
    """The teller ``kubernetes``.

    Args:
        required: this host is a node by configuration; else once a kubelet answered.
        pod_logs: the kubelet's folder of logs.
        dra_devices: a JSON file: device name of a claim (or driver/pool/device) → UUID.
    """

    name = "kubernetes"

    def __init__(
        self,
        access: Access,
        clock: Clock,
        *,
        required: bool,
        cgroup_root: Path = Path("/sys/fs/cgroup"),
        proc: Path = Path("/proc"),
        pod_logs: Path = POD_LOGS,
        dra_devices: Path | None = None,
    ) -> None:
        self.required = required
        self._access = access
        self._clock = clock
        self._cgroup_root = cgroup_root
        self._proc = proc
        self._pod_logs = pod_logs
        self._dra_devices = dra_devices
        self._known: dict[Pod, _Known] = {}
        self._heard = False
        self._unmapped: set[str] = set()
        self._events: deque[pb.Event] = deque(maxlen=64)

    async def ask(self) -> Word | None:
        """Return who holds what by the kubelet's word; see `Teller.ask`."""
        try:
            data = await self._access.podresources()
            answer = message("ListPodResourcesResponse").FromString(data)
        except (OSError, DecodeError) as exc:
            if not (self.required or self._heard):
                return None
            raise SilentError(str(exc) or type(exc).__name__) from exc
        self._heard = True
        now_ms = self._clock.monotonic_seconds() * 1000
        held = dict(_devices(answer, self._uuids()))
        groups, uids = await asyncio.to_thread(self._groups)
        self._known = {pod: self._known.get(pod, _Known(first_ms=now_ms)) for pod in held}
        places: dict[Place, tuple[Holder, ...]] = {}
        unplaced: list[Holder] = []
        for pod, counted in held.items():
            if not await self._holds(pod, uids.get(pod, ()), groups, now_ms):
                continue
            for place, count in counted.items():
                holder = self._holder(pod, uids.get(pod, ()), groups, count, now_ms)
                if isinstance(place, Place):
                    places[place] = (*places.get(place, ()), holder)
                else:
                    unplaced.append(holder)
        self._tell_unmapped({p for c in held.values() for p in c if isinstance(p, str)})
        return Word(held=places, unplaced=tuple(unplaced))

    def events(self) -> tuple[pb.Event, ...]:
        """Return devices that nobody can place, each once."""
        events = tuple(self._events)
        self._events.clear()
        return events

    async def _holds(
        self, pod: Pod, uids: Iterable[str], groups: Mapping[str, Path], now_ms: float
    ) -> bool:
        """Return whether a listed pod still is one."""
        known = self._known[pod]
        if any(uid in groups for uid in uids):
            known.grouped = True
            return True
        if known.grouped:
            return False
        if not groups or now_ms - known.first_ms < BINDING_MS:
            return True  # no group of any pod is to be seen here, or it is about to begin
        return not uids and await self._access.pod_exists(*pod) is not False

    def _holder(
        self, pod: Pod, uids: Iterable[str], groups: Mapping[str, Path], count: int, now_ms: float
    ) -> Holder:
        namespace, name = pod
        known = self._known[pod]
        if known.slurmd_ms is None or now_ms - known.slurmd_ms >= SLURMD_MS:
            known.slurmd_ms = now_ms
            known.slurmd = any(self._runs_slurmd(groups[uid]) for uid in uids if uid in groups)
        return Holder(
            job=f"{namespace}/{name}",
            team=clean_text(namespace),
            namespace=namespace,
            owners=frozenset(f"pod:{uid}" for uid in uids),
            weight=float(count),
            yields=known.slurmd,
        )

    def _runs_slurmd(self, group: Path) -> bool:
        for pid, _ in cgroup.pids(group, _PIDS_MAX):
            try:
                if (self._proc / str(pid) / "comm").read_text().strip() == "slurmd":
                    return True
            except OSError:
                continue
        return False

    def _groups(self) -> tuple[dict[str, Path], dict[Pod, tuple[str, ...]]]:
        """Return the control groups of pods by uid, and the uids of pods by name."""
        uids: dict[Pod, tuple[str, ...]] = {}
        try:
            for path in self._pod_logs.iterdir():
                namespace, _, rest = path.name.partition("_")
                name, _, uid = rest.rpartition("_")
                if uid and len(uids) < _PODS_MAX:
                    pod = (namespace, name)
                    uids[pod] = (*uids.get(pod, ()), cgroup.pod_uid(uid))
        except OSError:
            pass  # then no process is taken for a stranger, and doctor says why
        return cgroup.pods(self._cgroup_root), uids

    def _uuids(self) -> Mapping[str, str]:
        """Return the UUIDs of claimed devices that a file names; `_tell_unmapped` says what it lacks."""
        if self._dra_devices is None:
            return {}
        try:
            return msgspec.json.decode(self._dra_devices.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            return {}

    def _tell_unmapped(self, names: set[str]) -> None:
        for name in sorted(names - self._unmapped):
            text = f"a pod holds {name}; no card here is known by that name"
            self._events.append(told("device_unplaced", text, wall_unix_ms(self._clock)))
        self._unmapped = names


def _devices(answer: Any, uuids: Mapping[str, str]) -> Iterator[tuple[Pod, Counter[Place | str]]]:
    """Yield pods with the replicas of each card that they hold; a text is a device nobody can place."""
    for pod in answer.pod_resources:  # bounded by the size of the message
        held: Counter[Place | str] = Counter()
        for container in pod.containers:
            for devices in container.devices:
                for device_id in devices.device_ids:
                    place = plugin_place(devices.resource_name, device_id)
                    if place is not None:
                        held[place] += 1
            for claim in container.dynamic_resources:
                for resource in claim.claim_resources:
                    place = claim_place(
                        resource.driver_name, resource.pool_name, resource.device_name, uuids
                    )
                    if place is not None:
                        held[place] = 1  # containers of a pod may share a claim
        if held:
            yield (pod.namespace, pod.name), held


def plugin_place(resource: str, device_id: str) -> Place | str | None:
    """Return the card behind a device plugin's id; the id itself where nobody can say, None: no GPU."""
    if match := _NVIDIA_ID.fullmatch(device_id):
        return Place(UUID, match[1].lower())
    if match := _GKE_ID.fullmatch(device_id):
        return Place(MINOR, int(match[1]))
    return f"{resource} {device_id}" if resource.startswith("nvidia.com/") else None


def claim_place(
    driver: str, pool: str, device: str, uuids: Mapping[str, str]
) -> Place | str | None:
    """Return the card behind a claim's device; its name where nobody can say, None: no GPU."""
    known = uuids.get(f"{driver}/{pool}/{device}") or uuids.get(device)
    if known is not None:
        return Place(UUID, known.lower())
    if not driver.startswith("gpu."):
        return None
    if match := _DRA_CARD.fullmatch(device):
        return Place(MINOR, int(match[1]))
    if _DRA_UUID.fullmatch(device):
        return Place(UUID, device.lower())
    return f"{driver}/{pool}/{device}"
