"""Every layout of Slurm's JSON says the same of the same cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flopwatch_collector.roster.slurm_layout import (
    Cards,
    Job,
    Node,
    cards_in,
    hosts_in,
    jobs_of,
    nodes_of,
    tasks_in,
)
from flopwatch_proto.errors import RetryableError

NO = {"set": False, "infinite": False, "number": 0}


def some(number: int) -> dict[str, Any]:
    return {"set": True, "infinite": False, "number": number}


# One cluster as three versions print it; field names and forms from Debian's 22.05.8 (run), and from answers
# of 23.02.6 (data_parser v0.0.39) and 24.05.3 (v0.0.41) that their users published.
NODES_22_05 = {
    "meta": {"plugin": {"type": "openapi/v0.0.38"}, "Slurm": {"release": "22.05.8"}},
    "errors": [],
    "nodes": [
        {
            "name": "n1", "hostname": "n1", "state": "mixed", "state_flags": ["DRAIN"],
            "gres": "gpu:h100:8(S:0-1)", "gres_used": "gpu:h100:3(IDX:0-1,4)", "partitions": ["a", "b"],
            "reason": "fan", "cpus": 16, "alloc_cpus": 3, "real_memory": 2000, "alloc_memory": 500,
            "owner": None, "tres_weighted": 3.0, "cpu_load": 4294967294, "free_memory": -2,
        },
        {
            "name": "n2", "hostname": "n2", "state": "unknown", "state_flags": ["DRAIN", "INVALID_REG"],
            "gres": "gpu:8", "gres_used": "gpu:(null):0(IDX:N/A)", "partitions": ["a"], "reason": "",
            "cpus": 16, "alloc_cpus": 0, "real_memory": 2000, "alloc_memory": 0,
        },
    ],
}  # fmt: skip
NODES_23_02: dict[str, Any] = {
    "meta": {"plugins": {"data_parser": "data_parser/v0.0.39"}, "Slurm": {"release": "23.02.6"}},
    "nodes": [
        {
            "name": "n1", "hostname": "n1", "state": ["MIXED", "DRAIN"],
            "gres": "gpu:h100:8(S:0-1)", "gres_used": "gpu:h100:3(IDX:0-1,4)", "partitions": ["a", "b"],
            "reason": "fan", "cpus": 16, "alloc_cpus": 3, "real_memory": 2000, "alloc_memory": 500,
            "boot_time": 1720820315, "free_mem": some(39871), "reservation": "",
        },
        {
            "name": "n2", "hostname": "n2", "state": ["UNKNOWN", "DRAIN", "INVALID_REG"],
            "gres": "gpu:8", "gres_used": "gpu:0(IDX:N/A)", "partitions": ["a"], "reason": "",
            "cpus": 16, "alloc_cpus": 0, "real_memory": 2000, "alloc_memory": 0,
        },
    ],
    "warnings": [],
    "errors": [],
}  # fmt: skip
NODES_24_05 = {
    **NODES_23_02,
    "nodes": [
        {**node, "boot_time": some(1720820315), "next_state_after_reboot": ["INVALID"], "power": {}}
        for node in NODES_23_02["nodes"]
    ],
    "last_update": some(1746693325),
    "meta": {"plugin": {"data_parser": "data_parser/v0.0.41"}, "slurm": {"release": "24.05.3"}},
}
WANTED_NODES = (
    Node(
        name="n1",
        hostname="n1",
        states=frozenset({"MIXED", "DRAIN"}),
        cards=8,
        used=Cards(count=3, indexes=frozenset({0, 1, 4})),
        partitions=frozenset({"a", "b"}),
        reason="fan",
        card_type="h100",
        free_cpus=13,
        free_memory_bytes=1500 * 1024**2,
    ),
    Node(
        name="n2",
        hostname="n2",
        states=frozenset({"UNKNOWN", "DRAIN", "INVALID_REG"}),
        cards=8,
        used=Cards(count=0, indexes=frozenset()),
        partitions=frozenset({"a"}),
        free_cpus=16,
        free_memory_bytes=2000 * 1024**2,
    ),
)


def old_job(**changed: Any) -> dict[str, Any]:
    job = {
        "job_id": 7, "account": "red", "user_name": "ada", "user_id": 1000, "qos": "normal",
        "partition": "a", "job_state": "RUNNING", "state_reason": "None", "nodes": "n[1-2]",
        "gres_detail": ["gpu:h100:2(IDX:0-1)", "gpu:h100:1(IDX:0)"], "array_job_id": 0,
        "array_task_id": None, "array_task_string": "", "het_job_id": 0, "het_job_offset": 0,
        "restart_cnt": 0, "node_count": 2, "tasks": 2, "cpus": 4, "memory_per_node": None,
        "tres_req_str": "cpu=4,mem=4000M,node=2,billing=4", "tres_per_job": "gres:gpu:3",
        "tres_per_node": "", "tres_per_task": "", "tres_per_socket": "",
        "job_resources": {"nodes": "n[1-2]", "allocated_nodes": [{"nodename": "n1"}]},
    }  # fmt: skip
    return {**job, **changed}


def newer_job(states: str | list[str], **changed: Any) -> dict[str, Any]:
    numbers = {
        name: some(value) if value is not None else NO
        for name, value in old_job(**changed).items()
        if name in ("array_job_id", "array_task_id", "het_job_id", "het_job_offset", "node_count",
                    "tasks", "cpus", "memory_per_node")
    }  # fmt: skip
    resources = {"nodes": {"list": "n[1-2]", "allocation": [{"index": 0, "name": "n1"}]}}
    texts = {
        name: value.replace("gres:", "gres/")
        for name, value in old_job(**changed).items()
        if name.startswith("tres_")
    }
    return {
        **old_job(**changed), **numbers, **texts, "job_resources": resources, "job_state": states,
    }  # fmt: skip


JOBS_22_05 = [
    old_job(),
    old_job(job_id=9, array_job_id=8, array_task_id=3, restart_cnt=2, job_state="SUSPENDED"),
    old_job(job_id=11, het_job_id=10, het_job_offset=1, job_state="COMPLETING"),
    old_job(
        job_id=12, job_state="PENDING", state_reason="Resources", nodes="", gres_detail=[],
        array_job_id=12, array_task_string="0-9%4", tres_per_job="", tres_per_node="gres:gpu:h100:4",
    ),
]  # fmt: skip
JOBS_24_05 = [
    newer_job(["RUNNING"]),
    newer_job(["SUSPENDED"], job_id=9, array_job_id=8, array_task_id=3, restart_cnt=2),
    newer_job(["CANCELLED", "COMPLETING"], job_id=11, het_job_id=10, het_job_offset=1),
    newer_job(
        ["PENDING"], job_id=12, state_reason="Resources", nodes="", gres_detail=[],
        array_job_id=12, array_task_string="0-9%4", tres_per_job="", tres_per_node="gres:gpu:h100:4",
    ),
]  # fmt: skip


@pytest.mark.parametrize("answer", [NODES_22_05, NODES_23_02, NODES_24_05])
def test_a_node_is_the_same_in_every_layout(answer: dict[str, Any]) -> None:
    assert nodes_of(json.dumps(answer).encode()) == WANTED_NODES


def jobs(listed: list[dict[str, Any]]) -> tuple[Job, ...]:
    return jobs_of(json.dumps({"jobs": listed, "errors": []}).encode())


def test_a_job_is_the_same_in_every_layout() -> None:
    old, new = jobs(JOBS_22_05), jobs(JOBS_24_05)
    assert [job.states for job in new][2] == {"CANCELLED", "COMPLETING"}
    # 23.02 has the numbers of the one and the words of the other.
    mixed = jobs(
        [{**n, "job_state": o["job_state"]} for o, n in zip(JOBS_22_05, JOBS_24_05, strict=True)]
    )
    assert mixed == old
    for mine, other in zip(old, new, strict=True):
        assert mine.states <= other.states
        names = [name for name in Job.__slots__ if name != "states"]
        assert [getattr(mine, n) for n in names] == [getattr(other, n) for n in names]
    assert [(job.id, job.shown, job.attempt) for job in old] == [
        ("7", "7", 0), ("9", "8_3", 2), ("11", "10+1", 0), ("12", "12", 0),
    ]  # fmt: skip
    assert old[0].nodes == ("n1", "n2")
    assert [cards.indexes for cards in old[0].cards] == [{0, 1}, {0}]
    assert (old[3].pending_cards, old[3].pieces, old[3].cards_per_piece) == (4 * 2 * 4, 8, 4)
    assert old[3].card_type == "h100"


@pytest.mark.parametrize(
    ("asked", "cards"),
    [
        ({"tres_per_job": "gres:gpu:3"}, 3),
        ({"tres_per_job": "gres/gpu:3"}, 3),
        ({"tres_per_job": "gres/gpu=3"}, 3),
        ({"tres_per_job": "gres/gpu:h100=3"}, 3),
        ({"tres_per_node": "gres:gpu"}, 2),
        ({"tres_per_task": "gres/gpu:h100:2"}, 10),
        ({"tres_per_socket": "gres/gpu:1"}, 2),
        ({"tres_req_str": "cpu=2,mem=1G,node=2,billing=2,gres/gpu=6,gres/gpu:h100=6"}, 6),
        ({"tres_req_str": "cpu=2,mem=1G,node=2,billing=2"}, 0),
        ({"tres_per_job": "gres/shard:3"}, 0),
    ],
)
def test_what_a_pending_job_asks_for(asked: dict[str, str], cards: int) -> None:
    job = old_job(job_state="PENDING", tres_per_job="", tres_req_str="", tasks=5) | asked
    assert jobs([job])[0].pending_cards == cards


@pytest.mark.parametrize(
    ("text", "count", "indexes"),
    [
        ("gpu:h100:8(S:0-1)", 8, set()),
        ("gpu:4", 4, set()),
        ("gpu:(null):4(IDX:0-3)", 4, {0, 1, 2, 3}),
        ("gpu:h100:0(IDX:N/A)", 0, set()),
        ("gpu:a100:2(IDX:0,2),gpu:h100:1(IDX:5)", 3, {0, 2, 5}),
        ("craynetwork:4,gpu:2(IDX:0-1),shard:8(S:0)", 2, {0, 1}),
        ("gpu:1g.10gb:7(S:0)", 7, set()),
        ("gpu:h100:2(CNT:2)", 2, set()),
        ("(null)", 0, set()),
        ("", 0, set()),
        (None, 0, set()),
    ],
)
def test_cards_in_a_gres_text(text: str | None, count: int, indexes: set[int]) -> None:
    assert cards_in(text)[0] == Cards(count=count, indexes=frozenset(indexes))


def test_host_lists_and_arrays() -> None:
    assert hosts_in("gpu[01-03,7],login") == ("gpu01", "gpu02", "gpu03", "gpu7", "login")
    assert hosts_in("r[1-2]n[3-4]") == ("r1n3", "r1n4", "r2n3", "r2n4")
    assert [hosts_in(text) for text in (None, "", "(null)", "gpu[1-")] == [()] * 4
    assert [tasks_in(text) for text in ("", None, "1-9%3", "0-9", "1,5,7", "0-10:5", "4")] == [
        1, 1, 3, 10, 3, 3, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"sinfo": []}', b'{"nodes": null}', b"slurm_load: down"]
)
def test_what_is_no_answer_is_an_error(text: bytes) -> None:
    for read in (nodes_of, jobs_of):
        with pytest.raises(RetryableError, match="Slurm's answer"):
            read(text)
