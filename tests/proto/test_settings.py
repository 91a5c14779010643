"""Settings: what is accepted, and what every refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from flopwatch_proto.errors import UsageError
from flopwatch_proto.settings import Duration, keys, load


class Spool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    bytes_max: Annotated[int, msgspec.Meta(ge=1)] = 1000
    hold: Duration = Duration(10)


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    url: str = ""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    cluster: str = "default"
    dtype: Literal["bf16", "fp8"] = "bf16"
    ratio: float = 0.5
    simulated: bool = False
    data: Path = Path("/tmp")
    names: tuple[str, ...] = ()
    spool: Spool = Spool()
    routes: tuple[Route, ...] = ()
    clusters: dict[str, Spool] = {}

    def __post_init__(self) -> None:
        if self.ratio > 1:
            raise ValueError("ratio = 2.0: at most 1")


def read(tmp_path: Path, toml: str = "", **environ: str) -> Settings:
    path = tmp_path / "agent.toml"
    path.write_text(toml)
    return load(
        Settings,
        path=path,
        environ=environ,
        env_prefix="FLOPWATCH_AGENT",
        foreign_sections=("rules",),
    )


def refusal(tmp_path: Path, toml: str = "", **environ: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, toml, **environ)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults_stand_where_nothing_is_said(tmp_path: Path) -> None:
    assert read(tmp_path) == Settings()


def test_a_file_is_read_with_sections_lists_and_tables(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        'cluster = "atlas"\nratio = 1\ndata = "/data"\n[spool]\nbytes_max = 7\nhold = "5m"\n'
        '[[routes]]\nname = "pager"\n[clusters.atlas]\nbytes_max = 3\n',
    )
    assert settings.cluster == "atlas"
    assert settings.ratio == 1.0
    assert settings.data == Path("/data")
    assert settings.spool == Spool(bytes_max=7, hold=Duration(300))
    assert settings.routes == (Route(name="pager"),)
    assert settings.clusters == {"atlas": Spool(bytes_max=3)}


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        'cluster = "atlas"\n[spool]\nbytes_max = 7\nhold = "1s"\n',
        FLOPWATCH_AGENT__CLUSTER="borealis",
        FLOPWATCH_SPOOL__BYTES_MAX="12",
        FLOPWATCH_AGENT__SIMULATED="true",
        FLOPWATCH_AGENT__NAMES="a, b",
        FLOPWATCH_JOB="not a setting",
        HOME="/root",
    )
    assert settings.cluster == "borealis"
    assert settings.spool == Spool(bytes_max=12, hold=Duration(1))
    assert settings.simulated is True
    assert settings.names == ("a", "b")


def test_flags_win_over_the_environment(tmp_path: Path) -> None:
    settings = load(
        Settings,
        path=None,
        default_path=tmp_path / "absent.toml",
        environ={"FLOPWATCH_AGENT__CLUSTER": "a"},
        env_prefix="FLOPWATCH_AGENT",
        flags={"--cluster": ("cluster", "b"), "--data": ("data", None)},
    )
    assert settings.cluster == "b"
    assert settings.data == Path("/tmp")


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such configuration file"):
        load(
            Settings,
            path=tmp_path / "nowhere.toml",
            environ={},
            env_prefix="FLOPWATCH_AGENT",
        )


def test_a_text_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    assert "not TOML" in refusal(tmp_path, "cluster = ")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('clutser = "x"', ("unknown key clutser", "nearest known key is cluster")),
        ("[spool]\nbytesmax = 1", ("spool.bytesmax", "spool.bytes_max")),
        ("bytes_max = 1", ("unknown key bytes_max", "spool.bytes_max")),
        ("[spool]\nbytes_max = 0", ("spool.bytes_max = 0", ">= 1")),
        ('[spool]\nbytes_max = "7"', ("spool.bytes_max", "int")),
        ('dtype = "bf8"', ("dtype = 'bf8'", "bf16, fp8")),
        ("cluster = 3", ("cluster = 3", "str")),
        ("spool = 3", ("spool is a section",)),
        ("[spool]\nhold = 10", ("spool.hold = 10", "10s")),
        ('[spool]\nhold = "10 parsecs"', ("spool.hold", "10s")),
        ("ratio = 2", ("ratio", "at most 1")),
        ("[[routes]]\nurl = 'x'", ("routes.0.name is missing",)),
        ("[[routes]]\nname = 'x'\nurll = 'x'", ("routes.0.urll", "routes.0.url")),
        ("[clusters.a]\nbytes = 1", ("clusters.a.bytes", "clusters.a.bytes_max")),
    ],
)
def test_a_wrong_file_names_file_key_and_remedy(
    tmp_path: Path, toml: str, said: tuple[str, ...]
) -> None:
    text = refusal(tmp_path, toml)
    assert "agent.toml" in text
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("FLOPWATCH_AGENT__CLUTSER", "x", "nearest known key is cluster"),
        ("FLOPWATCH_SPOL__BYTES_MAX", "1", "FLOPWATCH_SPOOL__BYTES_MAX"),
        ("FLOPWATCH_SPOOL__BYTE_MAX", "1", "spool.bytes_max"),
        ("FLOPWATCH_SPOOL__BYTES_MAX", "many", "int"),
        ("FLOPWATCH_AGENT__SIMULATED", "perhaps", "bool"),
        ("FLOPWATCH_AGENT__SPOOL", "x", "FLOPWATCH_SPOOL__KEY"),
        ("FLOPWATCH_SPOOL__HOLD", "soon", "10s"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, said: str) -> None:
    text = refusal(tmp_path, **{name: value})
    assert name in text
    assert said in text


def test_sections_of_other_programs_are_left_alone(tmp_path: Path) -> None:
    assert read(tmp_path, FLOPWATCH_RULES__PAGE_SIMULATED="true") == Settings()


def test_every_key_is_listed_with_its_section() -> None:
    assert "cluster" in set(keys(Settings))
    assert "spool.hold" in set(keys(Settings))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("5m", 300), ("2h", 7200), ("35d", 3_024_000), ("1.5h", 5400)],
)
def test_durations_are_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert Duration.parse(text) == seconds
    assert Duration.parse(text).milliseconds == round(seconds * 1000)
