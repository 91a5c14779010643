"""What Kubernetes says of its cards, from a fake API server to the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from fake_kubernetes import FakeKubernetes, claim, node, pod, resource_slice, serving
from flopwatch_collector import config as configuration
from flopwatch_collector.roster.kubernetes import Listed, judge
from flopwatch_collector.roster.kubernetes_api import KubernetesApi
from flopwatch_collector.roster.kubernetes_gather import KubernetesRosters
from flopwatch_collector.roster.kubernetes_layout import Claim, Node, Pod, Slice, amount
from flopwatch_collector.roster.kubernetes_settings import KubernetesConfig
from flopwatch_collector.roster.metrics import RosterMetrics
from flopwatch_collector.roster.said import Said
from flopwatch_collector.telemetry.arrival import declared
from flopwatch_collector.telemetry.store import TelemetryStore
from flopwatch_proto.errors import RetryableError, UsageError
from flopwatch_proto.rows import Bucket
from flopwatch_proto.settings import Duration
from flopwatch_proto.v1 import telemetry_pb2 as pb

NOW = 1_800_000_000_000
Objects = Sequence[Mapping[str, Any]]


def slots(*nodes: str, cards: int = 8) -> dict[str, dict[str, str]]:
    return {n: {f"0000:{i:02x}:00.0": f"GPU-{n}-{i}" for i in range(cards)} for n in nodes}


def said(
    nodes: Objects,
    pods: Objects = (),
    claims: Objects = (),
    slices: Objects = (),
    known: Mapping[str, Mapping[str, str]] | None = None,
) -> Said:
    listed = Listed(
        nodes=msgspec.convert(nodes, list[Node]),
        pods=msgspec.convert(pods, list[Pod]),
        claims=msgspec.convert(claims, list[Claim]),
        slices=msgspec.convert(slices, list[Slice]),
    )
    return judge(listed, slots("n0") if known is None else known)


def buckets(of: Said) -> dict[Bucket, int]:
    return dict(Counter(word.bucket for word in of.words))


def test_a_node_that_nobody_uses_is_free_in_maintenance_or_failed() -> None:
    assert buckets(said([node("n0")])) == {Bucket.FREE: 8}
    assert buckets(said([node("n0", cordoned=True)])) == {Bucket.MAINT: 8}
    for ready in ("False", "Unknown"):
        assert buckets(said([node("n0", ready=ready)])) == {Bucket.FAILED: 8}
    assert buckets(said([node("n0", allocatable=0)])) == {Bucket.FAILED: 8}


def test_which_card_is_unhealthy_is_not_guessed() -> None:
    of = said([node("n0", allocatable=7)])
    assert of.words == []
    assert of.unlisted_free_cards == 7


def test_a_pod_holds_a_whole_node_from_its_binding_until_it_ends() -> None:
    for phase in ("Pending", "Running"):
        of = said([node("n0", cordoned=True)], [pod("train", on="n0", cards=8, phase=phase)])
        assert buckets(of) == {Bucket.ALLOCATED: 8}
        assert {(w.job, w.team) for w in of.words} == {("ml/train", "ml")}
    for phase in ("Succeeded", "Failed"):
        of = said([node("n0")], [pod("train", on="n0", cards=8, phase=phase)])
        assert buckets(of) == {Bucket.FREE: 8}


def test_of_pods_that_share_a_node_the_roster_does_not_guess_the_cards() -> None:
    of = said([node("n0")], [pod("a", on="n0", cards=4), pod("b", on="n0", cards=3)])
    assert of.words == []
    assert of.unlisted_free_cards == 1
    parts = said([node("n0")], [pod("a", on="n0", cards=1, resource="nvidia.com/mig-1g.10gb")])
    assert parts.words == []


def test_a_pod_without_cards_leaves_its_node_free() -> None:
    assert buckets(said([node("n0")], [pod("web", on="n0")])) == {Bucket.FREE: 8}


def test_a_node_is_known_by_its_name_or_its_hosts_and_an_unknown_one_is_told() -> None:
    host = node("ip-10-0-0-1")
    host["metadata"]["labels"]["kubernetes.io/hostname"] = "n0"
    of = said([host, node("other"), node("plain", cards=0)])
    assert buckets(of) == {Bucket.FREE: 8}
    assert of.unknown_nodes == ["other"]


def test_of_cards_that_kubernetes_does_not_give_out_it_says_nothing() -> None:
    for ready in ("True", "False"):
        of = said([node("n0", cards=0, ready=ready)])
        assert (of.words, of.unlisted_free_cards, of.unknown_nodes) == ([], 0, [])


def test_what_the_scheduler_cannot_place_is_demand() -> None:
    waiting = [pod(f"w{i}", cards=4, phase="Pending", waits=True) for i in range(3)]
    unseen = [pod("new", cards=8, phase="Pending"), pod("cpu", phase="Pending", waits=True)]
    of = said([node("n0", cordoned=True)], [*waiting, *unseen])
    assert (of.pending_jobs, of.pending_cards) == (3, 12)


def test_free_cards_that_no_waiting_pod_fits_are_stranded() -> None:
    hog = pod("hog", on="n0", cpus="60")
    waiting = [pod("w", cards=4, cpus="32", phase="Pending", waits=True)]
    of = said([node("n0")], [hog, *waiting])
    assert buckets(of) == {Bucket.STRANDED: 8}
    small = pod("s", cards=1, cpus="1", phase="Pending", waits=True)
    of = said([node("n0")], [hog, *waiting, small])
    assert {(w.bucket, w.weight) for w in of.words} == {
        (Bucket.STRANDED, 0.5),
        (Bucket.FREE, 0.5),
    }
    assert of.message(NOW).free_cards == pytest.approx(4)
    # Nothing waits: what runs is the mix, and a copy of it fits.
    assert buckets(said([node("n0")], [pod("web", on="n0")])) == {Bucket.FREE: 8}


def test_claims_name_the_cards_they_got() -> None:
    old = resource_slice("n0", {"gpu-0": "GPU-n0-7"}, generation=1)
    new = resource_slice("n0", {f"gpu-{i}": f"GPU-n0-{i}" for i in range(8)}, generation=2)
    pods = [pod("a", on="n0", claims=["ca"]), pod("b", on="n0", claims=["cb"])]
    claims = [claim("ca", "gpu-0"), claim("cb", "gpu-3")]
    of = said([node("n0", cards=0)], pods, claims, [old, new])
    assert {w.slot: w.job for w in of.words if w.bucket == Bucket.ALLOCATED} == {
        "0000:00:00.0": "ml/a",
        "0000:03:00.0": "ml/b",
    }
    assert buckets(of) == {Bucket.ALLOCATED: 2, Bucket.FREE: 6}
    cordoned = said([node("n0", cards=0, cordoned=True)], pods, claims, [old, new])
    assert buckets(cordoned) == {Bucket.ALLOCATED: 2}


def test_a_claim_whose_card_is_not_known_leaves_the_node_to_its_rows() -> None:
    pods = [pod("a", on="n0", claims=["ca"])]
    whole = resource_slice("n0", {"gpu-0": "GPU-n0-0"})
    mig = resource_slice("n0", {"gpu-0": "MIG-n0-0"}, kind="mig")
    bare = [node("n0", cards=0)]
    assert said(bare, pods, [], [whole]).words == []  # claims may not be read
    assert said(bare, pods, [claim("ca", "gpu-0")], []).words == []
    assert said(bare, pods, [claim("ca", "gpu-0")], [mig]).words == []
    shared = [*pods, pod("b", on="n0", claims=["ca"])]
    assert said(bare, shared, [claim("ca", "gpu-0")], [whole]).words == []


def test_a_claim_that_waits_is_demand() -> None:
    waiting = pod("w", phase="Pending", waits=True, claims=["cw"])
    of = said([node("n0", cards=0, cordoned=True)], [waiting], [claim("cw")])
    assert (of.pending_jobs, of.pending_cards) == (1, 1)


def test_quantities_are_read_as_they_are_written() -> None:
    written = {"500m": 0.5, "16Gi": 16 * 2**30, "1e3": 1000, "2": 2, "1.5k": 1500}
    assert {text: amount(text) for text in written} == written
    assert amount(8) == 8
    assert amount("8 apples") == amount("") == amount("1.2.3") == amount(None) == 0


# ---- over the wire


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    with serving(FakeKubernetes()) as served:
        served.lists = {
            "/api/v1/nodes": [node("n0"), node("n1")],
            "/api/v1/pods": [pod("train", on="n0", cards=8)],
        }
        yield served


def config(fake: FakeKubernetes, directory: Path, token: str = "secret") -> KubernetesConfig:
    file = directory / "token"
    file.write_text(token + "\n", encoding="ascii")
    return KubernetesConfig(
        cluster="atlas", url=fake.url, token_file=file, ca_file=None, deadline=Duration(20)
    )


async def listed(config_: KubernetesConfig) -> Listed:
    api = KubernetesApi(config_)
    try:
        return await api.listed()
    finally:
        await api.close()


async def test_lists_come_in_pages_and_again_when_they_expire(
    fake: FakeKubernetes, tmp_path: Path
) -> None:
    fake.page = 2
    fake.lists["/api/v1/pods"] = [pod(f"p{i}", on="n0") for i in range(5)]
    fake.expire = 1
    found = await listed(config(fake, tmp_path))
    assert [p.metadata.name for p in found.pods] == [f"p{i}" for i in range(5)]
    assert fake.asked.count("/api/v1/pods") == 2 + 3
    fake.expire = 2
    with pytest.raises(RetryableError, match="expires faster"):
        await listed(config(fake, tmp_path))


async def test_claims_are_read_in_the_newest_version_that_is_there(
    fake: FakeKubernetes, tmp_path: Path
) -> None:
    group = "/apis/resource.k8s.io/v1beta1"
    fake.lists |= {
        f"{group}/resourceclaims": [claim("ca", "gpu-0")],
        f"{group}/resourceslices": [resource_slice("n0", {"gpu-0": "GPU-n0-0"})],
    }
    found = await listed(config(fake, tmp_path))
    assert (len(found.claims), len(found.slices)) == (1, 1)


@pytest.mark.parametrize(
    ("token", "refuse", "complaint"),
    [
        ("wrong", None, "answered 401: Unauthorized"),
        ("secret", 500, "/api/v1/nodes answered 500: not today"),
        ("secret", 403, "/api/v1/nodes answered 403: not today"),
    ],
)
async def test_a_refusal_says_what_was_refused(
    fake: FakeKubernetes, tmp_path: Path, token: str, refuse: int | None, complaint: str
) -> None:
    fake.refuse = refuse
    with pytest.raises(RetryableError, match=complaint):
        await listed(config(fake, tmp_path, token))


async def test_an_answer_that_is_no_list_is_refused(fake: FakeKubernetes, tmp_path: Path) -> None:
    fake.lists["/api/v1/nodes"] = [{"metadata": {"name": 7}}]
    with pytest.raises(RetryableError, match="is not as expected"):
        await listed(config(fake, tmp_path))


class Sink:
    def __init__(self) -> None:
        self.rosters: list[Mapping[str, Sequence[Any]]] = []

    def roster(self, cluster: str, simulated: bool, columns: Mapping[str, Sequence[Any]]) -> None:
        self.rosters.append(columns)


async def test_rosters_are_stored_and_silence_is_told_once(
    fake: FakeKubernetes, tmp_path: Path, store: TelemetryStore
) -> None:
    cards = [
        pb.SlotDeclaration(
            node=n, slot=s, sku="H100", device_kind="gpu", dtype="bf16",
            state=pb.SLOT_STATE_IN_SERVICE, from_unix_ms=NOW - 60_000,
        )
        for n, of in slots("n0", "n1").items() for s in of
    ]  # fmt: skip
    store.append("slot", declared("atlas", cards, NOW))
    fake.lists["/api/v1/pods"] = [
        pod("train", on="n0", cards=8),
        pod("big", cards=16, phase="Pending", waits=True),
        pod("one", cards=1, phase="Pending", waits=True),
    ]
    sink, clock = Sink(), iter(range(NOW, NOW + 1_000_000, 1_000))
    asks = KubernetesRosters(
        store=store, sink=sink, config=config(fake, tmp_path),
        metrics=RosterMetrics(CollectorRegistry()), now_unix_ms=lambda: next(clock),
    )  # fmt: skip
    api = KubernetesApi(asks.config)
    assert await asks.once(api) is not None
    kept = store.query(
        "SELECT bucket, count() AS n, sum(weight) AS weight, any(pending_cards) AS pending, "
        "any(free_cards) AS free FROM roster FINAL WHERE node != '' GROUP BY bucket ORDER BY bucket"
    ).to_pylist()
    assert [(Bucket(r["bucket"]).name, r["n"], r["weight"]) for r in kept] == [
        ("ALLOCATED", 8, 8.0),
        ("STRANDED", 8, 4.0),
        ("FREE", 8, 4.0),
    ]
    assert {(r["pending"], r["free"]) for r in kept} == {(17, 4.0)}
    assert len(sink.rosters) == 1
    fake.refuse = 500
    assert await asks.once(api) is None
    assert await asks.once(api) is None
    fake.refuse = None
    assert await asks.once(api) is not None
    await api.close()
    told = store.query("SELECT kind, severity FROM event FINAL ORDER BY time_unix_ms").to_pylist()
    assert [(e["kind"], e["severity"]) for e in told] == [
        ("scheduler_silent", "error"),
        ("scheduler_answers", "info"),
    ]
    assert len(sink.rosters) == 2


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"KUBERNETES__URL": "10.0.0.1:6443"}, "url must begin with https:// or http://"),
        ({"KUBERNETES__INTERVAL": "10m"}, "interval must be between 1s and 240s"),
        (
            {"KUBERNETES__CLUSTER": "atlas", "SLURM__CLUSTER": "atlas"},
            "one scheduler speaks for a cluster",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        configuration.load(None, {f"FLOPWATCH_{k}": v for k, v in environ.items()}, {})
