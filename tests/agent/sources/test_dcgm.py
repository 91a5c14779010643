"""What a dcgm-exporter's text adds to the readings of cards that have no GPM."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from flopwatch_agent.config import DcgmConfig
from flopwatch_agent.dcgm_fields import DCGM_FIELDS
from flopwatch_agent.interval import Fold
from flopwatch_agent.reading import FIELDS, Device, Reading, Share
from flopwatch_agent.sources import dcgm
from flopwatch_agent.sources.dcgm import Dcgm, fetch_text, parse
from flopwatch_proto.codec import Value
from flopwatch_proto.errors import RetryableError
from flopwatch_proto.rows import Absence, Bucket
from flopwatch_proto.settings import Duration

UUID = "GPU-5a6e3f0c-0000-0000-0000-000000000000"
LABELS = f'gpu="0",UUID="{UUID}",device="nvidia0",modelName="NVIDIA A100-SXM4-80GB",Hostname="n1"'
SECOND = 1_000_000_000


def text(energy: int, sm: float, **more: float) -> str:
    """An exporter's answer: HELP and TYPE lines, a card, an instance of it, and pods that share it."""
    samples = {
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": energy,
        "DCGM_FI_DEV_GPU_UTIL": 99,
        "DCGM_FI_DEV_FB_USED": 40_000,
        "DCGM_FI_PROF_SM_ACTIVE": sm,
        **more,
    }
    lines = ["go_goroutines 12", "garbage", 'DCGM_FI_PROF_SM_ACTIVE{gpu="1"} 0.9']
    for name, value in samples.items():
        lines += [
            f"# HELP {name} help",
            f"# TYPE {name} gauge",
            f'{name}{{{LABELS},pod="a \\"b\\" {{c}}"}} {value}',
            f'{name}{{{LABELS},pod="other"}} {value}',
            f'{name}{{{LABELS},GPU_I_PROFILE="3g.40gb",GPU_I_ID="1"}} 0.111',
        ]
    return "\n".join(lines) + "\n"


class Exporter:
    """Says what it is told to, and at which time."""

    def __init__(self, *, enabled: str = "auto", collect_interval: float = 30) -> None:
        self.says: str | Exception = OSError("refused")
        self.asked = 0
        self.now_ns = 1000 * SECOND
        config = msgspec.convert({"enabled": enabled}, DcgmConfig)
        config = msgspec.structs.replace(config, collect_interval=Duration(collect_interval))
        self.dcgm = Dcgm(config, boottime_ns=lambda: self.now_ns, fetch=self.fetch)

    def fetch(self, url: str) -> str:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    async def refresh(self, says: str, after_seconds: int = 0) -> None:
        self.now_ns += after_seconds * SECOND
        self.says = says
        await self.dcgm.refresh()

    def complete(self, after_seconds: int = 0, **values: Value) -> Reading:
        self.now_ns += after_seconds * SECOND
        return self.dcgm.complete(reading(self.now_ns, **values))


def reading(boottime_ns: int, **values: Value) -> Reading:
    """A reading of an Ampere card: no GPM."""
    said: dict[str, Value] = {
        name: Absence.NOT_SUPPORTED for name in FIELDS if name.endswith("_active_ratio")
    }
    said |= {"sm_clock_mhz": 1410.0, "gpu_utilization_ratio": 0.5, **values}
    device = Device(slot="0000:07:00.0", kind="gpu", sku="NVIDIA A100-SXM4-80GB", uuid=UUID)
    return Reading(device=device, taken_unix_ms=1, boottime_ns=boottime_ns, values=said)


async def started(**options: float) -> Exporter:
    """An exporter whose first answer was heard: there is nothing to compare it with yet."""
    exporter = Exporter(**options)  # type: ignore[arg-type]
    exporter.complete()
    await exporter.refresh(text(1000, 0.2))
    return exporter


def test_a_text_gives_whole_cards_by_uuid_and_leaves_out_instances_and_nonsense() -> None:
    found = parse(text(5, 0.25, DCGM_FI_PROF_DRAM_ACTIVE=float("nan")))
    assert found == {
        UUID: {
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 5.0,
            "DCGM_FI_DEV_GPU_UTIL": 99.0,
            "DCGM_FI_DEV_FB_USED": 40_000.0,
            "DCGM_FI_PROF_SM_ACTIVE": 0.25,
        }
    }


async def test_a_mean_counts_from_its_change_and_for_as_long_as_it_took_to_come() -> None:
    exporter = await started()
    assert exporter.complete(1).values["sm_active_ratio"] is Absence.MISSING
    await exporter.refresh(text(2000, 0.4), after_seconds=29)
    completed = exporter.complete(30)
    assert completed.values["sm_active_ratio"] == 0.4
    assert completed.method == "dcgm"
    assert exporter.complete(1).values["sm_active_ratio"] is Absence.MISSING


async def test_an_exporter_that_repeats_itself_brings_no_new_mean() -> None:
    exporter = await started()
    await exporter.refresh(text(2000, 0.4), after_seconds=30)
    await exporter.refresh(text(2000, 0.4), after_seconds=20)
    assert exporter.complete(9).values["sm_active_ratio"] == 0.4
    await exporter.refresh(text(2000, 0.4), after_seconds=2)
    assert exporter.complete().values["sm_active_ratio"] is Absence.MISSING


async def test_an_idle_card_whose_energy_moves_is_idle_and_not_unknown() -> None:
    exporter = await started()
    for energy in (1000, 1001, 1002):
        idle = text(energy, 0.0, DCGM_FI_DEV_GPU_UTIL=0)
        await exporter.refresh(idle, after_seconds=30)
        assert exporter.complete(29).values["sm_active_ratio"] == 0.0


async def test_a_busy_card_on_which_no_sm_works_is_not_believed_for_long() -> None:
    exporter = await started()
    await exporter.refresh(text(2000, 0.0), after_seconds=30)  # the two may be of different moments
    assert exporter.complete().values["sm_active_ratio"] == 0.0
    await exporter.refresh(text(3000, 0.0), after_seconds=30)
    assert exporter.complete().values["sm_active_ratio"] is Absence.FAILED
    await exporter.refresh(text(4000, 0.7), after_seconds=30)
    assert exporter.complete().values["sm_active_ratio"] == 0.7


async def test_a_mean_never_speaks_for_much_longer_than_the_collect_interval() -> None:
    exporter = await started(collect_interval=1)
    await exporter.refresh(text(2000, 0.4), after_seconds=600)
    assert exporter.complete(2).values["sm_active_ratio"] == 0.4
    assert exporter.complete(1).values["sm_active_ratio"] is Absence.MISSING


async def test_only_what_nvml_does_not_support_is_completed() -> None:
    exporter = await started()
    names = {
        "DCGM_FI_PROF_TENSOR_UTIL_RATIO": 0.3,
        "DCGM_FI_PROF_DRAM_ACTIVE": 7.0,
        "DCGM_FI_PROF_PCIE_TX_BYTES": 5e9,
        "DCGM_FI_PROF_NVLINK_TX_BYTES": 6e9,
    }
    await exporter.refresh(text(2000, 0.4, **names), after_seconds=30)
    values = exporter.complete(
        pcie_tx_bytes_per_second=Absence.NOT_SUPPORTED, nvlink_tx_bytes_per_second=1.0
    ).values
    assert values["tensor_active_ratio"] == 0.3
    assert values["dram_active_ratio"] is Absence.FAILED  # no share of time
    assert values["pcie_tx_bytes_per_second"] == 5e9
    assert values["nvlink_tx_bytes_per_second"] == 1.0
    assert values["gpu_utilization_ratio"] == 0.5
    assert values["fp64_active_ratio"] is Absence.NOT_SUPPORTED


async def test_a_card_with_gpm_is_left_alone_and_then_nobody_is_asked() -> None:
    exporter = Exporter()
    own = reading(exporter.now_ns, sm_active_ratio=0.9)
    assert exporter.dcgm.complete(own) is own
    await exporter.dcgm.refresh()
    assert exporter.asked == 0


async def test_no_exporter_is_no_failure_unless_it_was_asked_for() -> None:
    exporter = Exporter()
    exporter.complete()
    await exporter.dcgm.refresh()
    assert exporter.dcgm.pause_seconds == dcgm.ABSENT_SECONDS
    assert exporter.complete().values["sm_active_ratio"] is Absence.NOT_SUPPORTED
    with pytest.raises(RetryableError, match="refused"):
        await Exporter(enabled="on").dcgm.refresh()


async def test_one_that_falls_silent_is_a_failure_and_its_means_end() -> None:
    exporter = await started()
    await exporter.refresh(text(2000, 0.4), after_seconds=30)
    exporter.says = OSError("reset")
    with pytest.raises(RetryableError, match="reset"):
        await exporter.dcgm.refresh()
    assert exporter.complete(30).values["sm_active_ratio"] == 0.4
    assert exporter.complete(1).values["sm_active_ratio"] is Absence.MISSING


async def test_rows_hold_every_mean_for_its_own_time_and_no_other() -> None:
    """An exporter brings four means, 30 s apart, and hangs."""
    exporter = Exporter(enabled="on")
    fold, rows = Fold(interval_ms=10_000), []
    share = (Share(bucket=Bucket.ACTIVE, job="1"),)
    for second in range(240):
        if second % 10 == 0:  # asks more often than the exporter refreshes
            refreshes = min(second, 120) // 30
            more = {"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.1 * refreshes}
            await exporter.refresh(text(1000 + refreshes, 0.2 * refreshes, **more))
        said = exporter.complete(1)
        rows += fold.add(replace(said, taken_unix_ms=exporter.now_ns // 1_000_000), share)
    rows += fold.close(exporter.now_ns)
    known = [row for row in rows if row.card_times["counted_ms"]]
    assert {row.texts["efficiency_method"] for row in known} == {"dcgm"}
    assert {row.texts["efficiency_method"] for row in rows} == {"dcgm", "none"}
    assert sum(row.card_times["covered_ms"] for row in rows) == 239_000
    assert sum(row.card_times["counted_ms"] for row in rows) == 120_000
    active_ms = sum(
        value for row in known if isinstance(value := row.values["sm_active_ms"], float)
    )
    assert active_ms == pytest.approx(30_000 * (0.2 + 0.4 + 0.6 + 0.8))


@contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _chunked(handler: BaseHTTPRequestHandler, chunks: Iterator[bytes]) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    try:
        for chunk in chunks:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")
    except OSError:
        handler.close_connection = True


def test_an_answer_in_chunks_is_read_whole() -> None:
    body = text(1, 0.5).encode()
    with served(lambda handler: _chunked(handler, iter((body[:100], body[100:])))) as url:
        assert fetch_text(url) == body.decode()


def test_an_answer_without_end_stops_at_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dcgm, "BYTES_MAX", 1 << 20)
    endless = (b"x" * 65536 for _ in range(10_000))
    with (
        served(lambda handler: _chunked(handler, endless)) as url,
        pytest.raises(ValueError, match="more than 1048576 bytes"),
    ):
        fetch_text(url)


def test_an_answer_that_trickles_ends_at_the_deadline() -> None:
    done = threading.Event()
    drops = (b"x" for _ in iter(lambda: done.wait(0.02), True))
    try:
        with (
            served(lambda handler: _chunked(handler, drops)) as url,
            pytest.raises(TimeoutError, match="no whole answer"),
        ):
            fetch_text(url, deadline_seconds=0.3)
    finally:
        done.set()


def test_another_status_is_no_answer() -> None:
    with served(lambda h: h.send_error(503)) as url, pytest.raises(ValueError, match="503"):
        fetch_text(url)


@pytest.mark.parametrize(
    "url", ["https://h/metrics", "127.0.0.1:9400", "http://u:p@h/", "file:///x"]
)
def test_an_address_that_is_not_plain_http_is_refused(url: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="url"):
        msgspec.convert({"url": url}, DcgmConfig)
    assert msgspec.convert({"url": "http://[::1]:9400/metrics"}, DcgmConfig).enabled == "auto"


def test_every_field_of_the_table_is_one_of_a_reading() -> None:
    assert {field.field for field in DCGM_FIELDS} - FIELDS.keys() == set()
    assert len({field.id for field in DCGM_FIELDS}) == len(DCGM_FIELDS)
