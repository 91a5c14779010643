"""The peak table: found by the whole name or not at all, and true to its own formula."""

import csv
import io
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flopwatch_kernels import peaks

# Rows with a published clock whose SM count x rate x clock misses the datasheet by over 1.2 %.
FORMULA_EXCEPTIONS = {
    ("H20", "fp32"),  # 0.90: export version
    ("H20", "tf32"),  # 4.27: tensor rate capped by export rules, as the next four
    ("H20", "fp16"),
    ("H20", "bf16"),
    ("H20", "fp8"),
    ("H20", "int8"),
    ("L40S", "fp16"),  # 1.0121: the datasheet's 362.05 implies 2490 MHz, its fp8 2520
    ("L40S", "bf16"),
}
IMPLIED_CLOCK_EXCEPTIONS = {("B200-SXM", "tf32")}  # 1100 and 1125 are both in NVIDIA's tables

LOOK_ALIKES = [
    # full name, dtype, TFLOP/s that this one has, TFLOP/s that popular code gives it
    ("NVIDIA L40S", "bf16", 362.05, 312.0),
    ("NVIDIA L40", "bf16", 181.05, 362.05),
    ("NVIDIA L4", "bf16", 121.0, 181.05),
    ("NVIDIA A10", "bf16", 125.0, 312.0),
    ("NVIDIA A10G", "bf16", 70.0, 125.0),
    ("NVIDIA A100-SXM4-80GB", "bf16", 312.0, 125.0),
    ("NVIDIA B300 SXM6 AC", "bf16", 2250.0, 2500.0),
    ("NVIDIA GB300", "bf16", 2500.0, 2250.0),
    ("NVIDIA B200", "bf16", 2250.0, 2500.0),
    ("NVIDIA GB200", "bf16", 2500.0, 2250.0),
    ("NVIDIA H20", "bf16", 148.0, 989.4),
    ("NVIDIA H200", "bf16", 989.4, 148.0),
    ("NVIDIA GH200 480GB", "bf16", 989.4, 835.5),
    ("NVIDIA H100 PCIe", "bf16", 756.4, 989.4),
    ("NVIDIA H100 NVL", "bf16", 835.5, 1671.0),
    ("NVIDIA H100 80GB HBM3", "bf16", 989.4, 756.4),
    ("NVIDIA H100 80GB HBM3", "tf32", 494.7, 67.0),
    ("NVIDIA GeForce RTX 5090", "bf16", 209.5, 838.0),
    ("NVIDIA B300 SXM6 AC", "int8", 150.0, 4500.0),
    ("NVIDIA GB300", "int8", 165.0, 5000.0),
]


def table_rows() -> list[dict[str, str]]:
    text = resources.files("flopwatch_kernels").joinpath("peaks.csv").read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text)))


def formula_over_listed(row: dict[str, str]) -> float:
    operations_per_second = (
        int(row["sm_count"]) * int(row["flop_per_clock_per_sm"]) * float(row["ref_clock_mhz"]) * 1e6
    )
    return operations_per_second / (float(row["dense_tflops"]) * 1e12)


def misses(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(r["key"], r["dtype"]) for r in rows if abs(formula_over_listed(r) - 1) > 0.012}


@pytest.mark.parametrize(("name", "dtype", "tera", "trap_tera"), LOOK_ALIKES)
def test_a_look_alike_name_gets_its_own_peak(
    name: str, dtype: str, tera: float, trap_tera: float
) -> None:
    flops = peaks.peak_flops(name, dtype)
    assert flops == pytest.approx(tera * 1e12)
    assert flops != pytest.approx(trap_tera * 1e12, rel=0.005)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100",  # the 64 and 96 GB parts print this; three cards could be meant
        "H100",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100L-94C",
        "NVIDIA A100",
        "NVIDIA A100-PG509-200",
        "NVIDIA GH200",
        "NVIDIA GH200 144G HBM3e",
        "NVIDIA H20-3e",
        "NVIDIA H20 NVL16",
        "NVIDIA B300",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "Tesla V100S-PCIE-32GB",
        "Tesla V100-SXM2-32GB-LS",
        "Tesla V100-SXM2-",
        "GRID T4-16Q",
        "NVIDIA L40SS",
        "AMD EPYC",
        "",
    ],
)
def test_a_name_that_is_not_in_the_table_is_unknown(name: str) -> None:
    assert peaks.find(name) is None
    assert peaks.peak_flops(name, "bf16") is None
    assert peaks.ref_clock_mhz(name, "bf16") is None


def test_no_part_of_any_name_is_found() -> None:
    known = {" ".join(n.split()).casefold() for s in peaks.skus() for n in (*s.names, s.key)}
    for sku in peaks.skus():
        for name in sku.names:
            parts = {name[:length] for length in range(len(name))}
            parts |= {name + extra for extra in ("S", "G", " NVL", " PCIe")}
            for part in parts:
                if " ".join(part.split()).casefold() not in known:
                    assert peaks.find(part) is None, part


@given(st.data())
@settings(max_examples=500)
def test_a_name_with_any_letter_changed_is_unknown(data: st.DataObject) -> None:
    known = {" ".join(n.split()).casefold() for s in peaks.skus() for n in (*s.names, s.key)}
    name = data.draw(st.sampled_from(sorted(known)))
    at = data.draw(st.integers(0, len(name)))
    letters = data.draw(st.text(st.sampled_from("abcghlnpstx0123459 -"), max_size=3))
    cut = data.draw(st.integers(0, 3))
    mutated = " ".join((name[:at] + letters + name[at + cut :]).split()).casefold()
    found = peaks.find(mutated)
    if mutated in known:
        assert found is not None
        assert mutated in {" ".join(n.split()).casefold() for n in (*found.names, found.key)}
    else:
        assert found is None, mutated


def test_case_and_blanks_of_a_name_do_not_matter() -> None:
    found = peaks.find("  nvidia  H100 80gb\thbm3 ")
    assert found is not None
    assert found.key == "H100-SXM5"


@pytest.mark.parametrize(
    "written", ["0x2330", "10de:2330", "10DE:2330", "0x233010DE", "0x233010de", "H100-SXM5"]
)
def test_every_form_of_an_id_finds_the_card(written: str) -> None:
    found = peaks.find(written)
    assert found is not None
    assert found.name == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    "written",
    [
        "0x2339",  # NVIDIA H100: 64 or 96 GB
        "0x20b0",  # A100-SXM4-40GB and A100-PG509-200
        "0x20b2",  # A100-SXM4-80GB and PG509-210
        "10de:1db5",  # V100-SXM2-32GB and its -LS version
        "1002:740c",  # MI250X and MI250
        "1002:2330",  # NVIDIA's number at another vendor
        "0x10de2330",  # vendor first is not what NVML writes
        "2330",
        "B200",  # hex digits, but neither an id nor a full name
        "A100",
    ],
)
def test_an_id_that_is_shared_or_malformed_is_unknown(written: str) -> None:
    assert peaks.find(written) is None


def test_a_name_or_id_belongs_to_one_sku_only() -> None:
    names = [n.casefold() for s in peaks.skus() for n in {*map(str.casefold, s.names)}]
    ids = [i for s in peaks.skus() for i in s.pci_ids]
    assert len(names) == len(set(names))
    assert len(ids) == len(set(ids))
    assert all(i == i.lower() and len(i) == 9 and i[4] == ":" for i in ids)


def test_no_name_in_the_table_is_a_pattern() -> None:
    assert not [n for s in peaks.skus() for n in s.names if "*" in n or "?" in n]
    v100 = peaks.find("Tesla V100-SXM2-32GB")
    assert v100 is not None
    assert v100 is peaks.find("Tesla V100-SXM2-16GB")


def test_the_formula_agrees_with_the_datasheet_in_193_of_201_published_rows() -> None:
    published = [
        r for r in table_rows() if r["clock_basis"] == "published" and r["flop_per_clock_per_sm"]
    ]
    assert len(published) == 201
    assert misses(published) == FORMULA_EXCEPTIONS
    assert len(published) - len(misses(published)) == 193


def test_an_implied_clock_reproduces_its_own_peak() -> None:
    implied = [r for r in table_rows() if r["clock_basis"] == "implied"]
    assert misses(implied) == IMPLIED_CLOCK_EXCEPTIONS


def test_formula_valid_says_what_the_columns_say() -> None:
    for row in table_rows():
        formed = bool(row["ref_clock_mhz"] and row["flop_per_clock_per_sm"])
        wanted = {True: "yes", False: "no"}[not misses([row])] if formed else ""
        assert row["formula_valid"] == wanted, (row["key"], row["dtype"])


def test_the_columns_of_a_sku_agree_on_all_its_rows() -> None:
    described: dict[tuple[str, str], str] = {}
    shared = ("vendor", "names", "pci_ids", "visible_devices", "max_clock_mhz", "id_source")
    for row in table_rows():
        for column in (*shared, "sm_count", "memory_gbps", "tdp_watts"):
            assert described.setdefault((row["key"], column), row[column]) == row[column]


def test_every_row_has_a_dtype_of_the_list_and_a_source() -> None:
    rows = table_rows()
    assert len(rows) == 286
    assert len(peaks.names()) == 45
    assert {r["dtype"] for r in rows} == set(peaks.DTYPES)
    assert all(r["source"] and r["id_source"] for r in rows)
    assert len({(r["key"], r["dtype"]) for r in rows}) == len(rows)


@pytest.mark.parametrize("name", ["NVIDIA B100", "NVIDIA B300 SXM6 AC", "NVIDIA GB300"])
def test_a_card_without_a_published_clock_has_a_peak_but_no_reference_clock(name: str) -> None:
    assert peaks.peak_flops(name, "bf16") is not None
    assert peaks.ref_clock_mhz(name, "bf16") is None
    found = peaks.find(name)
    assert found is not None
    assert found.max_clock_mhz is None


def test_the_reference_clock_of_an_h100_depends_on_the_dtype() -> None:
    assert peaks.ref_clock_mhz("NVIDIA H100 80GB HBM3", "bf16") == 1830
    assert peaks.ref_clock_mhz("NVIDIA H100 80GB HBM3", "fp32") == 1980


def test_a_dtype_that_the_card_lacks_is_unknown() -> None:
    assert peaks.peak_flops("Tesla V100-SXM2-16GB", "bf16") is None
    assert peaks.peak_flops("NVIDIA H100 80GB HBM3", "fp4") is None
    assert peaks.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") is None


def test_a_package_that_shows_as_two_devices_is_listed_per_device() -> None:
    mi250x = peaks.find("AMD Instinct MI250X")
    assert mi250x is not None
    assert mi250x.visible_devices == 2
    peak = mi250x.peaks["bf16"]
    assert peak.dense_flops == pytest.approx(191.5e12)
    assert peak.sm_count == 110
    assert peak.tdp_watts == 280
    assert peak.memory_bytes_per_second == pytest.approx(1638.5e9)


def test_a_matrix_unit_for_fp64_is_what_a_library_reaches() -> None:
    h100, v100, l4 = (
        peaks.find(n) for n in ("NVIDIA H100 80GB HBM3", "Tesla V100-PCIE-16GB", "NVIDIA L4")
    )
    assert h100 is not None
    assert h100.tensor_fp64_flops == pytest.approx(66.9e12)
    assert v100 is not None
    assert v100.tensor_fp64_flops == pytest.approx(7.0e12)
    assert l4 is not None
    assert l4.tensor_fp64_flops is None


def test_the_nearest_name_is_for_error_texts_only() -> None:
    assert peaks.nearest("NVIDIA L40SS") == "NVIDIA L40S"
    assert peaks.nearest("nvidia h100 pci") == "NVIDIA H100 PCIe"
    assert peaks.nearest("a toaster oven") is None


def test_the_version_names_the_edition_and_the_content() -> None:
    edition, _, digest = peaks.PEAKS_VERSION.rpartition("-")
    assert edition == "2026-11"
    assert len(digest) == 8
    assert int(digest, 16) >= 0
