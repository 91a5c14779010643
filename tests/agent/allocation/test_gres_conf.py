"""The device file behind Slurm's index of a GPU."""

from __future__ import annotations

import pytest

from flopwatch_agent.allocation import gres
from flopwatch_agent.allocation.prolog import numbers


@pytest.mark.parametrize(
    ("text", "minors"),
    [
        ("NodeName=n[001-032] Name=gpu Type=h100 File=/dev/nvidia[0-7]", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("Name=gpu File=/dev/nvidia[2-3]", (2, 3)),
        ("Name=gpu File=/dev/nvidia3\nName=gpu File=/dev/nvidia0 # swapped", (3, 0)),
        ("name=GPU file=/dev/nvidia[0,2,4-5]", (0, 2, 4, 5)),
        ("NodeName=m[1-9] Name=gpu File=/dev/nvidia[0-7]", ()),
        ("NodeName=m1,n002 Name=gpu File=/dev/nvidia1", (1,)),
        ("Name=gpu MultipleFiles=/dev/nvidia1,/dev/nvidia-caps/nvidia-cap12", (1,)),
        ("AutoDetect=nvml", ()),
        ("#Name=gpu File=/dev/nvidia1", ()),
        ("Name=nic File=/dev/mlx5_0", ()),
        ("", ()),
    ],
)
def test_an_index_counts_the_files_of_the_node(text: str, minors: tuple[int, ...]) -> None:
    assert gres.minors(text, "n002") == minors


def test_host_lists_are_written_out() -> None:
    assert list(gres.expand("a[08-10],b,c[1,3]d[1-2]")) == [
        *("a08", "a09", "a10", "b"),
        *("c1d1", "c1d2", "c3d1", "c3d2"),
    ]
    assert len(list(gres.expand("n[0-999999999]"))) == 100_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0,2-3", (0, 2, 3)), ("", ()), ("N/A", ()), ("(null)", ()), ("7", (7,)), ("3-1", ())],
)
def test_numbers_of_a_list(text: str, expected: tuple[int, ...]) -> None:
    assert numbers(text) == expected
