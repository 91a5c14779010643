"""Network and RDMA counters, on trees like those of the kernel."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from flopwatch_agent.sources import host
from flopwatch_agent.sources.host import HostProbe, host_rows
from flopwatch_agent.sources.network import Interfaces, LinkReading, RdmaPorts

NOTHING = LinkReading()


def write(directory: Path, **files: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, count in files.items():
        (directory / name).write_text(f"{count}\n")


def interface(
    sys: Path, name: str, tx: int, rx: int, errors: int = 0, *, real: bool = True
) -> None:
    path = sys / "class/net" / name
    write(path / "statistics", tx_bytes=tx, rx_bytes=rx, rx_errors=errors, tx_errors=0)
    if real:
        (path / "device").mkdir(exist_ok=True)
        write(path, carrier_down_count=1)


def port(sys: Path, device: str, number: int = 1, **counters: int) -> None:
    write(sys / f"class/infiniband/{device}/ports/{number}/counters", **counters)


def rdma(sys: Path) -> RdmaPorts:
    return RdmaPorts(sys / "class/infiniband")


def test_words_of_four_bytes_and_errors_are_summed_over_all_ports(tmp_path: Path) -> None:
    port(tmp_path, "mlx5_0", port_xmit_data=10, port_rcv_data=20, symbol_error=1, link_downed=2)
    port(tmp_path, "mlx5_1", port_xmit_data=1, port_rcv_data=2, port_rcv_errors=4)
    port(tmp_path, "mlx5_1", 2, port_xmit_data=1, port_rcv_data=2, link_error_recovery=8)
    assert rdma(tmp_path).read() == LinkReading(tx_bytes=48, rx_bytes=96, errors_count=15)


def test_an_adapter_with_bytes_among_its_hardware_counters_gives_those(tmp_path: Path) -> None:
    path = tmp_path / "class/infiniband/efa_0/ports/1/hw_counters"
    write(path, tx_bytes=1000, rx_bytes=2000, lifespan=12)
    assert rdma(tmp_path).read() == LinkReading(tx_bytes=1000, rx_bytes=2000)


def test_a_host_without_rdma_has_no_value_and_not_zero(tmp_path: Path) -> None:
    assert not rdma(tmp_path).found
    assert rdma(tmp_path).read() == NOTHING
    assert Interfaces(tmp_path / "class/net").read() == NOTHING


@pytest.mark.parametrize("fallen", [0, 5], ids=["restart", "wrap"])
def test_time_in_which_one_port_fell_has_no_value_though_the_sum_rose(
    tmp_path: Path, fallen: int
) -> None:
    ports = rdma(tmp_path)
    seen = []
    for first, second in ((2**32 - 5, 0), (fallen, 2**33), (fallen + 1, 2**33 + 1)):
        port(tmp_path, "mlx5_0", port_xmit_data=first)
        port(tmp_path, "mlx5_1", port_xmit_data=second)
        seen.append(ports.read().tx_bytes)
    assert seen == [4 * (2**32 - 5), None, 4 * (fallen + 2 + 2**33)]


def test_a_link_that_comes_brings_no_traffic_of_its_past(tmp_path: Path) -> None:
    interface(tmp_path, "eth0", 100, 200)
    net = Interfaces(tmp_path / "class/net")
    assert net.read().tx_bytes == 100
    interface(tmp_path, "eth1", 10**12, 10**12)
    assert net.read().tx_bytes is None
    assert net.read().tx_bytes == 100 + 10**12


def test_bridges_repeat_what_an_interface_carries_and_count_only_where_nothing_else_is(
    tmp_path: Path,
) -> None:
    interface(tmp_path, "lo", 7, 7, real=False)
    interface(tmp_path, "veth0", 30, 40, errors=2, real=False)
    root = tmp_path / "class/net"
    assert Interfaces(root).read() == LinkReading(tx_bytes=30, rx_bytes=40, errors_count=2)
    interface(tmp_path, "eth0", 100, 200, errors=5)
    assert Interfaces(root).read() == LinkReading(tx_bytes=100, rx_bytes=200, errors_count=6)


async def test_the_rows_of_a_host_have_bytes_and_errors_of_its_links(tmp_path: Path) -> None:
    probe = HostProbe(sys_root=tmp_path)
    readings = []
    for step in range(3):
        interface(tmp_path, "eth0", 100 * step, 0, errors=step)
        port(tmp_path, "mlx5_0", port_xmit_data=10 * step, port_rcv_data=0, symbol_error=2 * step)
        readings.append(await probe.take())
    start = 1_700_000_000_000
    rows = host_rows(
        [replace(reading, taken_unix_ms=start + 1000 * i) for i, reading in enumerate(readings)]
    )
    assert list(rows.nic_tx_bytes) == [200]
    assert list(rows.rdma_tx_bytes) == [80]
    assert list(rows.rdma_rx_bytes) == [0]
    assert list(rows.link_errors_count) == [6]


async def test_an_adapter_that_hangs_costs_its_own_values_and_is_not_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "RDMA_SECONDS_MAX", 0.05)
    port(tmp_path, "mlx5_0", port_xmit_data=10, port_rcv_data=0)
    interface(tmp_path, "eth0", 100, 0)
    answers, asked = threading.Event(), []

    def hang(ports: RdmaPorts) -> LinkReading:
        asked.append(ports)
        answers.wait(30)
        return LinkReading(tx_bytes=4.0)

    monkeypatch.setattr(RdmaPorts, "read", hang)
    probe = HostProbe(sys_root=tmp_path)
    for _ in range(2):
        reading = await probe.take()
        assert (reading.nic_tx_bytes, reading.rdma_tx_bytes) == (100, None)
    assert len(asked) == 1
    answers.set()
    monkeypatch.setattr(host, "RDMA_SECONDS_MAX", 30)
    assert (await probe.take()).rdma_tx_bytes == 4.0
