"""Kubernetes by its kubelet's word, over real gRPC on a unix socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fake_kubelet import FakeKubelet, pod
from flopwatch_agent.access import Direct
from flopwatch_agent.allocation.holders import MINOR, UUID, Place, SilentError, Word
from flopwatch_agent.allocation.kubernetes import BINDING_MS, Kubernetes, claim_place
from flopwatch_agent.clock import SystemClock
from host_folders import UID_1, UID_2, FakeHost

GPU_A, GPU_B = (
    "GPU-aaaaaaaa-0000-0000-0000-000000000001",
    "GPU-bbbbbbbb-0000-0000-0000-000000000002",
)
MIG = "MIG-cccccccc-0000-0000-0000-000000000003"


class Stopped(SystemClock):
    """A clock that a test moves."""

    seconds = 1000.0

    def monotonic_seconds(self) -> float:
        return self.seconds


class Cluster:
    """A host, its kubelet and the teller that asks it."""

    def __init__(self, root: Path, kubelet: FakeKubelet) -> None:
        self.host = FakeHost(root, v2=True)
        self.kubelet = kubelet
        self.clock = Stopped()
        self.dra = root / "dra.json"
        self.teller = self.make()

    def make(self, *, required: bool = False) -> Kubernetes:
        return Kubernetes(
            Direct(self.host.proc, self.kubelet.path),
            self.clock,
            required=required,
            cgroup_root=self.host.cgroup,
            proc=self.host.proc,
            pod_logs=self.host.pod_logs,
            dra_devices=self.dra,
        )

    async def word(self) -> Word:
        word = await self.teller.ask()
        assert word is not None
        return word

    async def held(self) -> dict[str | int, list[str]]:
        held = (await self.word()).held
        return {place.name: [h.job for h in holders] for place, holders in held.items()}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with FakeKubelet(tmp_path / "kubelet.sock") as kubelet:
        yield Cluster(tmp_path, kubelet)


async def test_device_plugin_ids_are_cards_and_mig_devices_of_pods(cluster: Cluster) -> None:
    cluster.kubelet.pods = [
        pod("ml", "train-0", GPU_A, GPU_B),
        pod("ml", "small", MIG, resource="nvidia.com/mig-1g.10gb"),
        pod("ml", "cpu-only"),
        pod("ml", "net", "mlx5_0", resource="rdma/hca"),
        pod("gke", "old", "nvidia3", "nvidia4/vgpu1"),
    ]
    assert await cluster.held() == {
        GPU_A.lower(): ["ml/train-0"],
        GPU_B.lower(): ["ml/train-0"],
        MIG.lower(): ["ml/small"],
        3: ["gke/old"],
        4: ["gke/old"],
    }
    holder = (await cluster.word()).held[Place(UUID, GPU_A.lower())][0]
    assert (holder.team, holder.namespace) == ("ml", "ml")


async def test_time_sliced_replicas_are_one_card_shared_by_replicas_held(cluster: Cluster) -> None:
    cluster.kubelet.pods = [
        pod("ml", "a", f"{GPU_A}::0", f"{GPU_A}::3", resource="nvidia.com/gpu.shared"),
        pod("ml", "b", f"{GPU_A}::1", resource="nvidia.com/gpu.shared"),
    ]
    holders = (await cluster.word()).held[Place(UUID, GPU_A.lower())]
    assert [(h.job, h.weight) for h in holders] == [("ml/a", 2.0), ("ml/b", 1.0)]


async def test_claims_name_cards_by_minor_number_and_what_nobody_can_place_is_said(
    cluster: Cluster,
) -> None:
    driver = "gpu.nvidia.com"
    mig = (driver, "node-1", "gpu-0-mig-9-0-1")
    cluster.kubelet.pods = [
        pod("ml", "whole", claims=[(driver, "node-1", "gpu-5")]),
        pod("ml", "cut", claims=[mig]),
        pod("ml", "link", claims=[("compute-domain.nvidia.com", "node-1", "channel-0")]),
    ]
    word = await cluster.word()
    assert list(word.held) == [Place(MINOR, 5)]
    assert [holder.job for holder in word.unplaced] == ["ml/cut"]
    (event,) = cluster.teller.events()
    assert (event.kind, "gpu-0-mig-9-0-1" in event.text) == ("device_unplaced", True)
    await cluster.word()
    assert cluster.teller.events() == ()
    cluster.dra.write_text(json.dumps({"gpu.nvidia.com/node-1/gpu-0-mig-9-0-1": MIG}))
    word = await cluster.word()
    assert set(word.held) == {Place(MINOR, 5), Place(UUID, MIG.lower())}
    assert word.unplaced == ()


@pytest.mark.parametrize(
    ("driver", "device", "place"),
    [
        ("gpu.nvidia.com", "gpu-0", Place(MINOR, 0)),
        ("gpu.nvidia.com", GPU_A.lower(), Place(UUID, GPU_A.lower())),
        ("gpu.nvidia.com", "gpu-vfio-0", "gpu.nvidia.com/p/gpu-vfio-0"),
        ("gpu.other.com", "x", "gpu.other.com/p/x"),
        ("dra.net", "eth1", None),
    ],
)
def test_names_of_claimed_devices(driver: str, device: str, place: Place | str | None) -> None:
    assert claim_place(driver, "p", device, {}) == place


async def test_a_pod_holds_its_card_from_binding_on_and_until_its_control_group_goes(
    cluster: Cluster,
) -> None:
    cluster.host.pod("kube-system", "other", UID_2)
    cluster.kubelet.pods = [pod("ml", "train-0", GPU_A)]
    assert await cluster.held() == {GPU_A.lower(): ["ml/train-0"]}
    path = cluster.host.pod("ml", "train-0", UID_1)
    cluster.clock.seconds += BINDING_MS
    assert await cluster.held() == {GPU_A.lower(): ["ml/train-0"]}
    holder = (await cluster.word()).held[Place(UUID, GPU_A.lower())][0]
    assert holder.owners == {f"pod:{UID_1}"}
    cluster.host.pod_ends(path)
    assert await cluster.held() == {}  # still listed, and over


async def test_a_terminated_pod_that_was_never_seen_alive_is_dropped(cluster: Cluster) -> None:
    cluster.host.pod("kube-system", "other", UID_2)
    (cluster.host.pod_logs / f"ml_done_{UID_1}").mkdir()
    cluster.kubelet.pods = [pod("ml", "done", GPU_A)]
    assert await cluster.held() == {GPU_A.lower(): ["ml/done"]}
    cluster.clock.seconds += BINDING_MS / 1000
    assert await cluster.held() == {}


async def test_a_pod_without_traces_is_looked_up_by_get_where_the_kubelet_has_it(
    cluster: Cluster,
) -> None:
    cluster.host.pod("kube-system", "other", UID_2)
    cluster.kubelet.pods = [pod("ml", "a", GPU_A), pod("ml", "b", GPU_B)]
    cluster.kubelet.known = {("ml", "a")}
    await cluster.word()
    cluster.clock.seconds += BINDING_MS / 1000
    assert await cluster.held() == {GPU_A.lower(): ["ml/a"]}


async def test_get_unimplemented_is_asked_once_and_the_pod_holds(cluster: Cluster) -> None:
    cluster.host.pod("kube-system", "other", UID_2)
    cluster.kubelet.pods = [pod("ml", "a" * 200, GPU_A)]
    await cluster.word()
    cluster.clock.seconds += BINDING_MS / 1000
    for _ in range(3):
        assert len(await cluster.held()) == 1
    assert cluster.kubelet.gets == 1


async def test_a_list_of_more_than_four_mebibytes_is_read(cluster: Cluster) -> None:
    many = [pod("ml", f"{'x' * 240}-{n}", f"{GPU_A}::{n}") for n in range(4000)]
    cluster.kubelet.pods = [*many, *(pod("y" * 250, "z" * 250 + str(n)) for n in range(9000))]
    assert sum(one.ByteSize() for one in cluster.kubelet.pods) > 5 * 1024 * 1024
    assert len((await cluster.word()).held[Place(UUID, GPU_A.lower())]) == 4000


async def test_a_pod_that_runs_slurmd_yields(cluster: Cluster) -> None:
    path = cluster.host.pod("slinky", "slurmd-0", UID_1)
    cluster.host.process(50, "slurmd", group=path)
    cluster.kubelet.pods = [pod("slinky", "slurmd-0", GPU_A), pod("ml", "train-0", GPU_B)]
    held = (await cluster.word()).held
    assert [holders[0].yields for holders in held.values()] == [True, False]


async def test_a_kubelet_counts_once_it_answered_and_is_silent_afterwards(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path / "kubelet.sock") as kubelet:
        cluster = Cluster(tmp_path, kubelet)
        kubelet_path, kubelet.path = kubelet.path, tmp_path / "nowhere"
        with pytest.raises(SilentError, match="no such socket"):
            await cluster.make(required=True).ask()
        assert await cluster.make().ask() is None
        kubelet.path = kubelet_path
        assert await cluster.word() == Word()
    with pytest.raises(SilentError):
        await cluster.teller.ask()
    async with FakeKubelet(tmp_path / "kubelet.sock") as kubelet:  # restarted
        kubelet.pods = [pod("ml", "a", GPU_A)]
        assert len((await cluster.word()).held) == 1


async def test_a_kubelet_that_does_not_answer_is_silent_in_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flopwatch_agent.access._KUBELET_SECONDS_MAX", 0.2)
    cluster.kubelet.silent = True
    with pytest.raises(SilentError, match="Deadline"):
        await cluster.make(required=True).ask()
