"""OTLP metrics from jobs: by OpenTelemetry's own exporter over both doors, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from flopwatch_agent.jobs import JobTable
from flopwatch_agent.otlp import MESSAGE_BYTES_MAX, Metrics, OtlpIntake
from flopwatch_agent.otlp_messages import EXPORT_METHOD, message

DELTA, CUMULATIVE = 1, 2


def export(values: Mapping[str, float], *, temporality: int = CUMULATIVE, **labels: str) -> Any:
    """Return an export as OpenTelemetry's own messages write it, read by ours."""
    request = otlp.ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    for key, value in labels.items():
        resource.resource.attributes.add(key=key).value.string_value = value
    scope = resource.scope_metrics.add()
    for name, number in values.items():
        metric = scope.metrics.add(name=name, unit="1")
        if name.endswith("_total"):
            metric.sum.aggregation_temporality = temporality  # type: ignore[assignment]
            metric.sum.data_points.add(as_double=number, time_unix_nano=1)
        else:
            metric.gauge.data_points.add(as_int=int(number), time_unix_nano=1) if float(
                number
            ).is_integer() else metric.gauge.data_points.add(as_double=number, time_unix_nano=1)
    return message("Request").FromString(request.SerializeToString())


@pytest.fixture
async def intake(tmp_path: Path) -> AsyncIterator[OtlpIntake]:
    """Return an intake that listens on a free port and a socket."""
    listener = OtlpIntake("127.0.0.1:0", tmp_path / "otlp.sock", JobTable(), lambda: 0.0)
    await listener.start()
    yield listener
    await listener.close()


async def test_opentelemetrys_own_exporter_is_understood_at_both_doors(intake: OtlpIntake) -> None:
    table = intake._metrics._table

    def run(endpoint: str, job: str) -> None:
        exporter = OTLPMetricExporter(endpoint=endpoint, insecure=True)
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        resource = Resource({"job": job, "team": "nlp", "device": "cuda:GPU-A", "dtype": "bf16"})
        provider = MeterProvider(metric_readers=[reader], resource=resource)
        meter = provider.get_meter("train")
        flops = meter.create_counter("flopwatch.model_flops_total")
        step = meter.create_gauge("flopwatch.step")
        meter.create_counter("http.requests").add(5)
        for number in (1, 2, 3):
            flops.add(1e15)
            step.set(number)
            provider.force_flush()
        provider.shutdown()

    for endpoint, job in ((f"127.0.0.1:{intake.port}", "tcp"), (f"unix:{intake.path}", "unix")):
        await asyncio.to_thread(run, endpoint, job)
        # What stood there when it was first heard is not counted.
        assert table.counters("a", job) == {"model_flops": 2e15, "steps_count": 2}
    assert table.drops == {}
    assert {d.labels.team for d in table.for_device("a")} == {"nlp"}


async def test_an_export_that_is_too_large_is_refused_and_the_next_is_taken(
    intake: OtlpIntake,
) -> None:
    async with grpc.aio.insecure_channel(f"unix:{intake.path}") as channel:
        call = channel.unary_unary(
            EXPORT_METHOD, request_serializer=bytes, response_deserializer=bytes
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\x0a" + b"x" * MESSAGE_BYTES_MAX)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\xff\xff no protobuf")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        answer = await call(export({"flopwatch.step": 1}).SerializeToString())
    said = otlp.ExportMetricsServiceResponse.FromString(answer).partial_success
    assert (said.rejected_data_points, said.error_message) == (
        1, "resource attribute job is missing",
    )  # fmt: skip


async def test_a_port_that_is_taken_leaves_the_socket(intake: OtlpIntake, tmp_path: Path) -> None:
    address = f"127.0.0.1:{intake.port}"
    second = OtlpIntake(address, tmp_path / "second.sock", JobTable(), lambda: 0.0)
    await second.start()
    assert (second.port, second.path.is_socket()) == (0, True)
    await second.close()
    await second.close()


async def test_switched_off_it_makes_neither_port_nor_socket(tmp_path: Path) -> None:
    off = OtlpIntake("", tmp_path / "off.sock", JobTable(), lambda: 0.0)
    await off.start()
    assert (off.port, off.path.exists()) == (0, False)
    await off.close()


def test_an_mfu_holds_for_the_time_since_the_export_before() -> None:
    table = JobTable()
    metrics = Metrics(table)
    for at_ms, mfu in ((0, 0.9), (10_000, 0.8), (20_000, 0.4), (40_000, 0.5)):
        metrics.take(export({"flopwatch.mfu": mfu}, job="j", device="cpu"), at_ms)
    counted = {"reported_ms": 30_000.0, "reported_mfu_ms": pytest.approx(14_000.0)}
    assert table.counters("cpu", "j") == counted


def test_without_a_device_the_figures_count_on_each_card_of_the_job() -> None:
    table = JobTable()
    metrics = Metrics(table)
    metrics.take(export({"flopwatch.tokens_total": 5.0}, job="j"), 0)
    assert table.counters("a", "j") == {"tokens_count": 0.0}
    metrics.take(export({"flopwatch.tokens_total": 25.0}, job="j"), 10_000)
    assert table.counters("a", "j") == {"tokens_count": 20.0}


def test_steps_that_go_back_are_a_restart() -> None:
    table = JobTable()
    metrics = Metrics(table)
    for at_ms, step in ((0, 500), (60_000, 600), (120_000, 551)):
        metrics.take(export({"flopwatch.step": step}, job="j", device="cpu"), at_ms)
    (event,) = table.events(120_000, 1_793_534_400_000)
    assert (event.kind, event.code) == ("job_restart", 550)
    assert event.text == "started again at step 550: 50 steps lost"


def test_deltas_are_refused_and_counted() -> None:
    table = JobTable()
    values = {"flopwatch.tokens_total": 5.0}
    refused, why = Metrics(table).take(export(values, temporality=DELTA, job="j"), 0)
    assert (refused, why) == (1, "flopwatch.*: sums must be cumulative")
    assert table.drops == {"otlp": 1}


def test_exporters_are_bounded_and_only_silent_ones_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flopwatch_agent.otlp.EXPORTERS_MAX", 2)
    table = JobTable()
    metrics = Metrics(table)
    for job in ("a", "b"):
        assert metrics.take(export({"flopwatch.step": 1}, job=job), 0) == (0, "")
    assert metrics.take(export({"flopwatch.step": 1}, job="c"), 1000) == (1, "too many exporters")
    assert metrics.take(export({"flopwatch.step": 1}, job="c"), 300_001) == (0, "")
