"""The drawing of results: what is in it, and that it reads in light and in dark."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from flopwatch.cli.probe_plot import WIDTH, svg
from flopwatch_kernels.messages import ProbeResult
from probe_results import moments, result

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*results: ProbeResult) -> tuple[ElementTree.Element, list[str]]:
    root = ElementTree.fromstring(svg(results))
    return root, [text.text or "" for text in root.iter(f"{SVG}text")]


def bars(root: ElementTree.Element) -> list[float]:
    return [float(r.attrib["width"]) for r in root.iter(f"{SVG}rect") if r.get("class") == "bar"]


def test_every_shape_is_a_bar_as_long_as_its_part_of_the_datasheet() -> None:
    root, texts = drawn(result())
    [dashed] = [p.attrib["d"] for p in root.iter(f"{SVG}path") if p.get("class") == "sheet"]
    sheet = float(dashed.removeprefix("M").split()[0]) - 176
    assert [bar / sheet for bar in bars(root)] == pytest.approx(
        [798 / 989.4, 742 / 989.4], abs=0.01
    )
    assert {"gemm bf16", "8192×8192×8192", "798 TFLOP/s", "datasheet 989 TFLOP/s"} <= set(texts)
    whiskers = [p for p in root.iter(f"{SVG}path") if p.get("class") == "whisker"]
    assert len(whiskers) == 2


def test_a_sustained_load_has_a_bar_of_its_own_and_curves_of_what_is_known() -> None:
    root, texts = drawn(result(sustained=True, moments=moments()))
    assert len(bars(root)) == 3
    assert "sustained" in texts
    curves = [p for p in root.iter(f"{SVG}path") if p.get("class") == "curve"]
    assert len(curves) == 3  # no power was read
    assert {"TFLOP/s", "MHz", "°C"} <= set(texts)
    assert "W" not in texts
    for curve in curves:
        numbers = [float(n) for n in re.findall(r"-?\d+\.\d", curve.attrib["d"])]
        assert min(numbers) >= 0
        assert max(numbers) <= max(WIDTH, float(root.attrib["height"]))


def test_other_quantities_are_bars_in_their_unit_and_screens_are_words() -> None:
    corrupt = result("sdc", median_value=3.0, outcome="corrupt", reason="…")
    root, texts = drawn(result("bandwidth", None), result("launch", None), corrupt)
    assert len(bars(root)) == 2
    assert {"3.01 TB/s", "3.10 µs", "datasheet 3.34 TB/s"} <= set(texts)
    assert {"sdc bf16 · wrong results", "3 wrong elements in 54 products"} <= set(texts)
    assert [t.get("class") for t in root.iter(f"{SVG}text")].count("head bad") == 2


def test_an_unknown_card_has_no_datasheet_line_and_an_odd_name_is_escaped() -> None:
    odd = result(sku="A <card> & more", datasheet_flops=None, of_datasheet=None)
    root, texts = drawn(odd)
    assert not [p for p in root.iter(f"{SVG}path") if p.get("class") == "sheet"]
    assert texts[0].startswith("A <card> & more")


def test_nothing_measured_is_said() -> None:
    assert drawn()[1][0] == "nothing was measured"


def test_both_schemes_have_every_colour() -> None:
    style = svg([result()]).split("<style>")[1].split("</style>")[0]
    light, dark = (set(re.findall(r"--(\w+):", part)) for part in style.split("@media"))
    assert light == dark != set()
