"""`flopwatch check allocation` against Kubernetes: a kubectl that prints recorded lists, an API by script."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from fake_kubernetes import claim, node, pod, resource_slice
from flopwatch.cli import app
from flopwatch.cli.check_differences import Difference, Told, card_differences
from flopwatch_collector.roster.said import Said, Word
from flopwatch_proto.rows import Bucket

KUBECTL = """\
#!/bin/sh
# As kubectl does: `kubectl get KIND … --output=json`; a kind nobody has is an error in these words.
if [ -e "{home}/away" ]; then
  echo 'The connection to the server 10.0.0.1:6443 was refused' >&2; exit 1
fi
if [ -e "{home}/$2.json" ]; then exec cat "{home}/$2.json"; fi
echo "error: the server doesn't have a resource type \\"$2\\"" >&2; exit 1
"""
Card = dict[str, Any]
Check = Callable[..., tuple[int, Any]]


def card(at: int, bucket: str, job: str | None = None, *, row: bool = True) -> Card:
    """Return a card as the API lists it."""
    of = {"start": "2026-11-01T00:00:00Z", "rogue": False} if row else None
    source = "kubernetes" if job else None
    slot = f"0000:{at:02x}:00.0"
    return {"slot": slot, "bucket": bucket, "job": job, "row": of, "allocation_source": source}


def cards(**jobs: int) -> list[Card]:
    """Return eight cards of a node: those of jobs of namespace ml, then free ones."""
    held = [f"ml/{job}" for job, count in jobs.items() for _ in range(count)]
    return [card(i, "ACTIVE", job) for i, job in enumerate(held)] + [
        card(i, "FREE") for i in range(len(held), 8)
    ]


class FakeApi:
    """What flopwatch says: node → its cards."""

    def __init__(self, nodes: Mapping[str, Sequence[Card]]) -> None:
        self.nodes = nodes

    def answer(self, path: str) -> Any:
        if path == "/api/v1/inventory":
            slots = [
                {"node": n, "slot": c["slot"], "state": "in_service", "device_kind": "gpu",
                 "device_uuid": f"GPU-{n}-{i}"}
                for n, of in self.nodes.items() for i, c in enumerate(of)
            ]  # fmt: skip
            return {"slots": slots}
        if path == "/api/v1/nodes":
            listed = [
                {"node": n, "cards": Counter(c["bucket"] for c in of)}
                for n, of in self.nodes.items()
            ]
            return {"nodes": listed}
        return {"cards_list": self.nodes[unquote(path.rpartition("/")[2])]}


@pytest.fixture
def api() -> Iterator[tuple[FakeApi, str]]:
    fake = FakeApi({})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(fake.answer(urlsplit(self.path).path)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield fake, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def check(
    api: tuple[FakeApi, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Check:
    """Run the command with what both sides say; returns its exit code and its JSON."""
    script = tmp_path / "kubectl"
    script.write_text(KUBECTL.format(home=tmp_path))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))

    def run(flopwatch: Mapping[str, Sequence[Card]], *more: str, **lists: Any) -> tuple[int, Any]:
        api[0].nodes = flopwatch
        for name, items in lists.items():
            name = name if name in ("nodes", "pods") else f"{name}.resource.k8s.io"
            (tmp_path / f"{name}.json").write_text(json.dumps({"kind": "List", "items": items}))
        capsys.readouterr()
        named = more or ("--cluster", "k8s")
        code = app.run(["check", "allocation", "--api", api[1], "--json", *named])
        out = capsys.readouterr()
        return code, json.loads(out.out) if code in (0, 1) else out.err

    return run


def test_both_agree_where_pods_have_what_they_asked_for(check: Check) -> None:
    pods = [pod("a", on="n0", cards=3), pod("b", on="n0", cards=2), pod("c", on="n1", cards=8)]
    code, said = check(
        {"n0": cards(a=3, b=2), "n1": cards(c=8), "n2": cards()},
        nodes=[node("n0"), node("n1"), node("n2")],
        pods=[*pods, pod("done", on="n0", cards=3, phase="Succeeded")],
    )
    assert (code, said["differences"]) == (0, [])
    assert said["flopwatch"] == {"allocated": 13, "free": 11}


def test_each_node_that_differs_is_told_with_its_reason(check: Check) -> None:
    blind = [card(i, "UNSEEN", row=False) for i in range(8)]
    broken = [*cards(e=2)[:7], card(7, "FREE")]
    code, said = check(
        {
            "short": cards(a=2),
            "stale": cards(a=1, old=2),
            "blind": blind,
            "whole": cards(other=8),
            "cordoned": cards(),
            "sick": broken,
            "unlisted": cards(),
        },
        nodes=[
            *(node(n) for n in ("short", "stale", "blind", "whole", "new")),
            node("cordoned", cordoned=True),
            node("sick", allocatable=7),
        ],
        pods=[
            *(pod("a", on="short", cards=4), pod("a", on="stale", cards=1, namespace="ml")),
            *(pod("d", on="blind", cards=1), pod("c", on="whole", cards=8)),
            pod("e", on="sick", cards=2),
        ],
    )
    assert code == 1
    by_node: dict[str, list[dict[str, Any]]] = {}
    for one in said["differences"]:
        by_node.setdefault(one["node"], []).append(one)

    def of(name: str) -> tuple[str | None, str | None, str]:
        (one,) = by_node.pop(name)
        return one["flopwatch"], one["kubernetes"], one["reason"]

    assert of("short") == (
        *("ml/a: 2 cards", "ml/a: 4 cards"),
        "what it asked for is not what the node gave it",
    )
    assert of("stale")[:2] == ("ml/old: 2 cards", "ml/old: 0 cards")
    assert of("blind")[2] == "no agent speaks for 8 cards of the node"
    assert of("sick")[:2] == ("0 lost", "1 unhealthy")
    assert of("new")[:2] == (None, "has cards")
    assert of("unlisted")[:2] == ("has cards", None)
    whole, cordoned = by_node.pop("whole"), by_node.pop("cordoned")
    assert {(d["flopwatch"], d["kubernetes"]) for d in whole} == {("job ml/other", "job ml/c")}
    assert {(d["flopwatch"], d["kubernetes"]) for d in cordoned} == {("FREE", "MAINT")}
    assert (len(whole), len(cordoned), by_node) == (8, 8, {})


def test_cards_that_claims_name_are_compared_one_by_one(check: Check) -> None:
    devices = {f"gpu-{i}": f"GPU-n0-{i}" for i in range(8)}
    lists: dict[str, Any] = {
        "nodes": [node("n0", cards=0)],
        "pods": [pod("a", on="n0", claims=["ca"])],
        "resourceclaims": [claim("ca", "gpu-3")],
        "resourceslices": [resource_slice("n0", devices)],
    }
    code, said = check({"n0": cards(a=1)}, **lists)
    assert code == 1
    assert [(d["slot"], d["flopwatch"], d["kubernetes"]) for d in said["differences"]] == [
        ("0000:00:00.0", "ACTIVE", "FREE"),
        ("0000:03:00.0", "FREE", "ALLOCATED"),
    ]
    right = [card(i, "ACTIVE", "ml/a") if i == 3 else card(i, "FREE") for i in range(8)]
    assert check({"n0": right}, **lists)[0] == 0


def test_a_part_of_a_card_is_compared_by_name_alone(check: Check) -> None:
    part = pod("a", on="n0", cards=1, resource="nvidia.com/mig-1g.10gb")
    assert check({"n0": cards(a=2)}, nodes=[node("n0")], pods=[part])[0] == 0
    code, said = check({"n0": cards()}, nodes=[node("n0")], pods=[part])
    assert code == 1
    assert said["differences"][0]["kubernetes"] == "ml/a: some cards"


def test_what_cannot_be_compared_ends_with_2(check: Check, tmp_path: Path) -> None:
    known: dict[str, Any] = {"nodes": [node("n0")], "pods": []}
    assert "--cluster" in check({"n0": cards()}, "--scheduler", "kubernetes", **known)[1]
    assert "no slurm.conf" in check({"n0": cards()}, "--scheduler", "slurm", **known)[1]
    assert "knows no card" in check({}, **known)[1]
    (tmp_path / "away").touch()
    code, complaint = check({"n0": cards()}, **known)
    assert code == 2
    assert "Kubernetes does not answer" in complaint
    assert "was refused" in complaint


def test_another_job_on_a_card_is_a_difference_and_one_of_several_is_none() -> None:
    def word(job: str) -> Word:
        return Word(node="n0", slot="0", bucket=Bucket.ALLOCATED, job=job, weight=0.5, why="runs")

    told = Told(source="slurm", said=Said(source="slurm", words=[word("81"), word("82")]), held={})
    mine = {**card(0, "ACTIVE", "82"), "slot": "0"}
    assert card_differences({"n0": [mine]}, told) == []
    (found,) = card_differences({"n0": [{**mine, "job": "pid-7"}]}, told)
    assert found == Difference(
        node="n0",
        slot="0",
        flopwatch="job pid-7",
        other="job 81 82",
        reason="its agent's last row, from 2026-11-01T00:00:00Z, is by kubernetes; slurm: runs",
    )
    assert card_differences({"n0": [{**mine, "job": None, "row": None}]}, told) == []  # no agent
