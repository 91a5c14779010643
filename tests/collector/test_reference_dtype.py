"""The dtype whose peak a cluster's waterfall is of: from the file, and to the web process."""

from __future__ import annotations

from pathlib import Path

import pytest

from flopwatch_collector.config import load
from flopwatch_collector.web.__main__ import _parser
from flopwatch_proto.errors import UsageError


def test_a_cluster_may_have_one_and_it_must_be_a_dtype(tmp_path: Path) -> None:
    file = tmp_path / "collector.toml"
    file.write_text('[clusters.atlas]\nreference_dtype = "fp8"\n')
    assert load(file, {}, {}).clusters["atlas"].reference_dtype == "fp8"
    file.write_text('[clusters.atlas]\nreference_dtype = "f8"\n')
    with pytest.raises(UsageError, match=r"clusters\.atlas\.reference_dtype is 'f8'; use one of"):
        load(file, {}, {})


def test_the_web_process_takes_one_for_each_cluster() -> None:
    plain = ["--data", "/nowhere", "--http", "127.0.0.1:0", "--control", "sqlite://"]
    named = ["--reference-dtype", "atlas", "fp8", "--reference-dtype", "b", "bf16"]
    assert dict(_parser().parse_args(plain).reference_dtype) == {}
    assert dict(_parser().parse_args(plain + named).reference_dtype) == {
        "atlas": "fp8",
        "b": "bf16",
    }
