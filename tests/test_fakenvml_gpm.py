"""The fake's readings over time: GPM samples and the driver's sample buffers."""

import time
from pathlib import Path

import pytest

from fakenvml import Script, build, device, mig
from fakenvml.harness import START, ask, process

GPM = """
def sample():
    return n.nvmlGpmSampleGet(cards[0], n.nvmlGpmSampleAlloc())
def metrics(a, b, *ids):
    get = n.c_nvmlGpmMetricsGet_t(version=1, numMetrics=len(ids), sample1=a, sample2=b)
    for i, id in enumerate(ids):
        get.metrics[i].metricId = id
        get.metrics[i].value = -1
    n.nvmlGpmMetricsGet(get)
    return [(get.metrics[i].nvmlReturn, get.metrics[i].value) for i in range(len(ids))]
"""


@pytest.fixture(scope="session")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.getbasetemp() / "fakenvml")


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path / "script.txt").write(device(0))


def test_gpm_answers_the_mean_between_two_samples(lib: Path, script: Script) -> None:
    script.write(device(0, gpm={2: "0 @0.05 100 repeat 0.1", 5: 42.5}))
    code = "a = sample(); time.sleep(1.05); b = sample(); say(*metrics(a, b, 2, 5))"
    (code_2, mean), steady = ask(lib, script, START + GPM + code)
    assert (code_2, mean) == (0, pytest.approx(50, abs=5))
    assert steady == [0, pytest.approx(42.5)]


def test_gpm_means_see_a_change_between_the_samples(lib: Path, script: Script) -> None:
    script.write(device(0, gpm={5: 80}))
    code = "a = sample(); say(0); wait(); n.nvmlDeviceGetCount(); say(1); wait()\n"
    code += "say(*metrics(a, sample(), 5))"
    with process(lib, script, START + GPM + code) as reader:
        reader.said()
        time.sleep(0.5)
        script.add("device 0 gpm 5 0")
        time.sleep(0.02)
        reader.go_on()
        reader.said()
        time.sleep(0.5)
        reader.go_on()
        [[answer, mean]] = reader.said()
    assert answer == 0
    assert 15 < mean < 65


def test_every_gpm_metric_has_its_own_return_code(lib: Path, script: Script) -> None:
    script.write(device(0, gpm={2: 90, 5: "nan"}), "device 0 gpm_return 248 3 gpm_return 7 15")
    code = "a = sample(); time.sleep(0.12); say(*metrics(a, sample(), 2, 248, 7, 13, 5))"
    said = ask(lib, script, START + GPM + code)
    assert said[:4] == [[0, pytest.approx(90)], [3, -1], [15, -1], [3, -1]]
    assert said[4][0] == 0
    assert said[4][1] != said[4][1], "NaN"


def test_gpm_cycle_counters_advance_at_their_rate(lib: Path, script: Script) -> None:
    script.write(device(0, gpm={248: 1.65e9, 250: 0.66e9}))
    code = "a, t = sample(), time.monotonic(); time.sleep(0.3)\n"
    code += "b, u = sample(), time.monotonic()\n"
    code += "say(u - t, metrics(a, a, 248, 250), metrics(a, b, 248, 250))"
    took, first, second = ask(lib, script, START + GPM + code)
    elapsed, active = (second[i][1] - first[i][1] for i in (0, 1))
    assert elapsed == pytest.approx(1.65e9 * took, rel=0.3)
    assert active / elapsed == pytest.approx(0.4)


def test_a_gpm_sample_taken_too_soon_is_the_last_one(lib: Path, script: Script) -> None:
    script.write(device(0, gpm={5: 50}))
    code = "say(*metrics(sample(), sample(), 5))"
    [[answer, value]] = ask(lib, script, START + GPM + code)
    assert answer == 0
    assert value != value, "a mean over no time"


def test_a_card_without_gpm_says_so(lib: Path, script: Script) -> None:
    code = "say(n.nvmlGpmQueryDeviceSupport(cards[0]).isSupportedDevice, code(sample))"
    assert ask(lib, script, START + GPM + code) == [0, 3]


def test_gpm_of_a_mig_instance_is_its_own(lib: Path, script: Script) -> None:
    script.write(device(0, mig_mode=1, gpm={5: 10}), mig(0, 0, gi=3, gpm={5: 70}))
    code = "def one(): return n.nvmlGpmMigSampleGet(cards[0], 3, n.nvmlGpmSampleAlloc())\n"
    code += "a = one(); time.sleep(0.12); say(*metrics(a, one(), 5))"
    assert ask(lib, script, START + GPM + code) == [[0, pytest.approx(70)]]


def test_clock_samples_come_from_a_buffer_and_only_new_ones(lib: Path, script: Script) -> None:
    script.add("device 0 sample_period_ms 20 sample_buffer 10 sm_clock_mhz 1980")
    code = "time.sleep(0.4); clock = n.NVML_PROCESSOR_CLK_SAMPLES\n"
    code += "kind, a = n.nvmlDeviceGetSamples(cards[0], clock, 0); time.sleep(0.06)\n"
    code += "_, b = n.nvmlDeviceGetSamples(cards[0], clock, a[-1].timeStamp)\n"
    code += "say(kind, len(a), a[-1].timeStamp - a[0].timeStamp, a[0].timeStamp / 1e6, "
    code += "len(b), b[0].sampleValue.uiVal)"
    kind, held, span, stamp, new, clock = ask(lib, script, START + code)
    assert (kind, held, clock) == (1, 10, 1980)
    assert span == pytest.approx(180_000, abs=10)
    assert abs(stamp - time.time()) < 30
    assert 2 <= new <= 10


def test_an_idle_card_has_no_samples(lib: Path, script: Script) -> None:
    script.add("device 0 samples_idle 1")
    assert ask(lib, script, START + "say(code(n.nvmlDeviceGetSamples, cards[0], 5, 0))") == [6]
