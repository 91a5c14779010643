"""The fake driver library, by the real binding and by tools that know nothing of it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fakenvml import Script, build, device, env, exported, mig, replay
from fakenvml.harness import START, ask, command, process

WATCH = """
events = n.nvmlEventSetCreate()
for card in cards:
    n.nvmlDeviceRegisterEvents(card, n.nvmlEventTypeXidCriticalError, events)
def heard(ms):
    try:
        e = n.nvmlEventSetWait_v2(events, ms)
    except n.NVMLError as error:
        return error.value
    return [n.nvmlDeviceGetIndex(e.device), e.eventType, e.eventData]
"""


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "fakenvml"


@pytest.fixture
def lib(builds: Path) -> Path:
    return build(builds)


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path / "script.txt").write(device(0))


def values_of(calls: Iterable[str], lib: Path, script: Script) -> Any:
    return ask(lib, script, START + f"say({', '.join(f'n.{c}' for c in calls)})")


def test_a_card_answers_what_the_script_says(lib: Path, script: Script) -> None:
    script.write(device(0, power_milliwatts=620000, sm_clock_mhz=1650, serial="1650123"))
    calls = ["DeviceGetPowerUsage(cards[0])", "DeviceGetClockInfo(cards[0], 1)"]
    calls += ["DeviceGetName(cards[0])", "DeviceGetSerial(cards[0])", "SystemGetDriverVersion()"]
    calls += ["DeviceGetNumGpuCores(cards[0])", "DeviceGetPciInfo(cards[0]).pciDeviceId"]
    said = values_of([f"nvml{c}" for c in calls], lib, script)
    assert said == [
        620000,
        1650,
        "NVIDIA H100 80GB HBM3",
        "1650123",
        "595.58.03",
        16896,
        0x233010DE,
    ]


def test_a_value_left_out_is_not_supported_and_never_zero(lib: Path, script: Script) -> None:
    script.write("devices 1")
    asked = ["PowerUsage", "UtilizationRates", "MemoryInfo", "Serial", "EccMode", "MigMode"]
    asked += ["CurrentClocksEventReasons", "TotalEnergyConsumption", "FanSpeed", "RemappedRows"]
    said = ask(
        lib,
        script,
        START + f"say(*[code(getattr(n, 'nvmlDeviceGet' + c), cards[0]) for c in {asked}])",
    )
    assert said == [3] * len(asked)


def test_an_unknown_field_has_its_own_return_code(lib: Path, script: Script) -> None:
    script.add("device 0 field 138:2 77 field_return 186 GPU_IS_LOST")
    code = "v = n.nvmlDeviceGetFieldValues(cards[0], [82, 60, 186, (138, 2), (138, 3)])\n"
    said = ask(lib, script, START + code + "say(*[[f.nvmlReturn, f.value.ullVal] for f in v])")
    assert [f[0] for f in said] == [0, 3, 15, 0, 3]
    assert (said[0][1], said[3][1]) == (40, 77)


def test_a_value_changes_while_the_process_runs(lib: Path, script: Script) -> None:
    code = START + "while True: say(n.nvmlDeviceGetPowerUsage(cards[0])); wait()"
    with process(lib, script, code) as reader:
        assert reader.said() == [72000]
        script.add("device 0 power_milliwatts 700000")
        time.sleep(0.02)
        reader.go_on()
        assert reader.said() == [700000]


def test_a_value_follows_its_steps_and_ramps(lib: Path, script: Script) -> None:
    at = script.clock()
    script.add(
        f"device 0 power_milliwatts 1 @{at} 100000 ~{at + 1000} 200000 util_gpu 0 @{at + 9e3} 9"
    )
    power, util = values_of(
        ["nvmlDeviceGetPowerUsage(cards[0])", "nvmlDeviceGetUtilizationRates(cards[0]).gpu"],
        lib,
        script,
    )
    assert 100000 <= power < 103000
    assert util == 0


def test_energy_is_the_integral_of_the_power_through_a_change(lib: Path, script: Script) -> None:
    script.write(device(0, power_milliwatts=600000))
    code = "clock, energy = time.monotonic, n.nvmlDeviceGetTotalEnergyConsumption\n"
    code += "while True: say(clock(), energy(cards[0]), clock()); wait()"
    with process(lib, script, START + code) as reader:
        before, first, after = reader.said()
        time.sleep(0.3)
        changed = time.monotonic()
        script.add("device 0 power_milliwatts 0")
        time.sleep(0.02)
        reader.go_on()
        _, second, ended = reader.said()
        time.sleep(0.2)
        reader.go_on()
        _, third, _ = reader.said()
    # The old power counts until the process sees the change, when it next looks.
    assert 600 * (changed - after) <= (second - first) / 1000 <= 600 * (ended - before) + 0.01
    assert third == second


def test_counters_outlive_the_process(lib: Path, script: Script) -> None:
    script.write(device(0, power_milliwatts=600000))
    first, second = (
        values_of(["nvmlDeviceGetTotalEnergyConsumption(cards[0])"], lib, script)[0]
        for _ in range(2)
    )
    assert second > first


def test_a_lost_card_answers_gpu_is_lost(lib: Path, script: Script) -> None:
    script.write(device(0), device(1))
    code = "while True: say(*[code(n.nvmlDeviceGetPowerUsage, c) for c in cards]); wait()"
    with process(lib, script, START + code) as reader:
        assert reader.said() == [0, 0]
        script.add("device 1 lost")
        time.sleep(0.02)
        reader.go_on()
        assert reader.said() == [0, 15]
    again = "n.nvmlInit(); say(n.nvmlDeviceGetCount(), code(n.nvmlDeviceGetHandleByIndex, 1))"
    assert ask(lib, script, again) == [2, 15]


def test_a_card_that_is_absent_drops_the_count(lib: Path, script: Script) -> None:
    script.write(device(0), device(1), device(2), "device 1 absent")
    code = START + "say(len(cards), *[n.nvmlDeviceGetMinorNumber(c) for c in cards])"
    assert ask(lib, script, code) == [2, 0, 2]


def test_a_call_can_fail_for_one_card_alone(lib: Path, script: Script) -> None:
    script.write(device(0), device(1), "device 1 error nvmlDeviceGetPowerUsage NO_PERMISSION")
    code = "f, g = n.nvmlDeviceGetPowerUsage, n.nvmlDeviceGetName\n"
    code += "say(*[code(call, card) for card in cards for call in (f, g)])"
    assert ask(lib, script, START + code) == [0, 0, 4, 0]


def test_an_xid_arrives_once_through_the_event_set(lib: Path, script: Script) -> None:
    script.write(device(0), device(1), "event 0 xid 13")
    code = START + WATCH + "say(heard(0)); say(heard(5000)); say(heard(100))"
    with process(lib, script, code) as reader:
        assert reader.said() == [10], "what is in the script from the start is the past"
        script.fire_xid(1, 79)
        assert reader.said() == [[1, 8, 79]]
        assert reader.said() == [10]


def test_an_xid_can_be_set_for_a_time(lib: Path, script: Script) -> None:
    script.add(f"event 0 xid 48 at {script.clock() + 1}")
    assert ask(lib, script, START + WATCH + "say(heard(8000))") == [[0, 8, 48]]


def test_the_same_xid_again_is_another_event(lib: Path, script: Script) -> None:
    code = START + WATCH + "say(heard(0))\nwhile True: say(heard(5000))"
    with process(lib, script, code) as reader:
        assert reader.said() == [10]
        for _ in range(2):
            script.fire_xid(0, 31)
            assert reader.said() == [[0, 8, 31]]


def test_a_hung_call_blocks_until_the_line_goes(lib: Path, script: Script) -> None:
    hang = "hang nvmlDeviceGetTemperature"
    code = "say(1); say(n.nvmlDeviceGetTemperature(cards[0], 0))"
    script.add(hang)
    with process(lib, script, START + code) as reader:
        assert reader.said() == [1]
        with pytest.raises(subprocess.TimeoutExpired):
            reader.running.wait(timeout=0.3)
        script.remove(hang)
        assert reader.said() == [31]


def test_a_hung_call_blocks_no_other_thread(lib: Path, script: Script) -> None:
    code = "from threading import Thread\n"
    code += "args = (cards[0], 0)\n"
    code += "Thread(target=n.nvmlDeviceGetTemperature, args=args, daemon=True).start()\n"
    script.add("device 0 hang nvmlDeviceGetTemperature")
    assert ask(lib, script, START + code + "say(n.nvmlDeviceGetPowerUsage(cards[0]))") == [72000]


def test_a_hung_process_still_dies_by_its_signal(lib: Path, script: Script) -> None:
    script.add("hang *")
    with process(lib, script, "say(1); n.nvmlInit()") as reader:
        reader.said()
        reader.running.send_signal(signal.SIGTERM)
        assert reader.running.wait(timeout=5) == -signal.SIGTERM


def test_a_deaf_process_dies_by_nothing_but_sigkill(lib: Path, script: Script) -> None:
    script.add("hang nvmlDeviceGetName deaf")
    with process(lib, script, START + "say(1); n.nvmlDeviceGetName(cards[0])") as reader:
        reader.said()
        time.sleep(0.2)
        reader.running.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            reader.running.wait(timeout=0.5)
        reader.running.kill()
        assert reader.running.wait(timeout=5) == -signal.SIGKILL


def test_a_slow_call_takes_its_time(lib: Path, script: Script) -> None:
    script.add("latency nvmlDeviceGetPowerUsage 80")
    code = "t = time.monotonic(); n.nvmlDeviceGetPowerUsage(cards[0]); say(time.monotonic() - t)"
    assert 0.08 <= ask(lib, script, START + code)[0] < 1


def test_a_driver_mismatch_fails_the_start(lib: Path, script: Script) -> None:
    script.add("error nvmlInit_v2 18")
    assert ask(lib, script, "say(code(n.nvmlInit))") == [18]


def test_a_call_before_the_start_is_uninitialized(lib: Path, script: Script) -> None:
    code = START + "n.nvmlShutdown(); say(code(n.nvmlDeviceGetPowerUsage, cards[0]))"
    assert ask(lib, script, code) == [1]


def test_a_missing_symbol_is_function_not_found(builds: Path, script: Script) -> None:
    old = build(builds, missing=["nvmlGpmSampleGet", "nvmlDeviceGetMemoryInfo_v2"])
    code = "memory, sample = n.nvmlDeviceGetMemoryInfo, n.nvmlGpmSampleAlloc()\n"
    code += "say(code(n.nvmlGpmSampleGet, cards[0], sample), "
    code += "code(memory, cards[0], n.nvmlMemory_v2), code(memory, cards[0]))"
    assert ask(old, script, START + code) == [13, 13, 0]


def test_a_symbol_that_does_not_exist_cannot_be_missing(builds: Path) -> None:
    with pytest.raises(ValueError, match="nvmlDeviceGetPowerUsge"):
        build(builds, missing=["nvmlDeviceGetPowerUsge"])


def test_every_symbol_the_binding_looks_up_exists() -> None:
    import pynvml

    source = Path(pynvml.__file__).read_text()
    names = {part.split('"')[0] for part in source.split('_nvmlGetFunctionPointer("')[1:]}
    assert len(names) > 400
    assert names <= exported()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("device 0 power_miliwatts 1", "unknown key 'power_miliwatts' in line 6"),
        ("device 0 power_milliwatts", "expected a number, got 'end of line' in line 6"),
        ("error nvmlDeviceGetPowr 15", "no such NVML function: 'nvmlDeviceGetPowr' in line 6"),
        ("error nvmlInit LOST", "not an NVML return code: 'LOST' in line 6"),
        ("missing nvmlGpmSampleGet", "taken out at build time: 'nvmlGpmSampleGet' in line 6"),
        ("device 0-x util_gpu 1", "expected a card, a range or *, got '0-x' in line 6"),
    ],
)
def test_a_wrong_script_names_its_line(
    lib: Path, script: Script, line: str, complaint: str
) -> None:
    script.write("devices 1", "", line)
    done = subprocess.run(
        command("say(code(n.nvmlInit))"), env=env(lib, script), capture_output=True, text=True
    )
    assert complaint in done.stderr
    assert json.loads(done.stdout) == [999]


def test_a_script_gone_wrong_stops_every_answer(lib: Path, script: Script) -> None:
    code = START + "while True: say(code(n.nvmlDeviceGetPowerUsage, cards[0])); wait()"
    with process(lib, script, code) as reader:
        assert reader.said() == [0]
        script.add("nonsense")
        time.sleep(0.02)
        reader.go_on()
        assert reader.said() == [999]


MIGS = """
def list_mig():
    found = []
    for i in range(n.nvmlDeviceGetMaxMigDeviceCount(cards[0])):
        try:
            m = n.nvmlDeviceGetMigDeviceHandleByIndex(cards[0], i)
        except n.NVMLError_NotFound:
            continue
        sms = n.nvmlDeviceGetAttributes(m).multiprocessorCount
        found.append([n.nvmlDeviceGetUUID(m), n.nvmlDeviceGetGpuInstanceId(m), sms])
    return found
"""


def test_mig_devices_are_listed_and_change(lib: Path, script: Script) -> None:
    card = device(0, mig_mode=1)
    script.write(card, mig(0, 0, gi=1, uuid="MIG-a"), mig(0, 1, gi=2, uuid="MIG-b", sms=16))
    code = START + MIGS + "old = n.nvmlDeviceGetHandleByUUID('MIG-a'.encode())\n"
    code += "while True: say(list_mig(), code(n.nvmlDeviceGetName, old)); wait()"
    with process(lib, script, code) as reader:
        assert reader.said() == [[["MIG-a", 1, 60], ["MIG-b", 2, 16]], 0]
        script.write(card, mig(0, 0, gi=5, uuid="MIG-c", sms=132))
        time.sleep(0.02)
        reader.go_on()
        assert reader.said() == [[["MIG-c", 5, 132]], 2], "the old handle is stale"
        script.write(device(0))
        time.sleep(0.02)
        reader.go_on()
        assert reader.said() == [[], 2]


def test_processes_of_mig_devices_carry_their_instance(lib: Path, script: Script) -> None:
    script.write(device(0, mig_mode=1), mig(0, 0, gi=1), "device 0 process 7 compute na")
    script.add("device 0 mig 0 process 4242 compute 1000")
    code = "p = n.nvmlDeviceGetComputeRunningProcesses(cards[0])\n"
    code += "say(*[[q.pid, q.usedGpuMemory, q.gpuInstanceId] for q in p])"
    assert ask(lib, script, START + code) == [[7, None, 0xFFFFFFFF], [4242, 1000, 1]]


def test_a_wrong_struct_version_is_refused(lib: Path, script: Script) -> None:
    code = "memory, gpm = n.c_nvmlMemory_v2_t(version=1), n.c_nvmlGpmSupport_t(version=9)\n"
    code += "say(n.nvmlLib.nvmlDeviceGetMemoryInfo_v2(cards[0], n.byref(memory)), "
    code += "n.nvmlLib.nvmlGpmQueryDeviceSupport(cards[0], n.byref(gpm)))"
    assert ask(lib, script, START + code) == [25, 25]


def test_the_log_holds_every_call(lib: Path, script: Script, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    variables = env(lib, script) | {"FAKENVML_LOG": str(log)}
    subprocess.run(
        command(START + "code(n.nvmlDeviceGetFanSpeed, cards[0])"), env=variables, check=True
    )
    calls = [line.split()[2:] for line in log.read_text().splitlines()]
    assert calls[0] == ["nvmlInitWithFlags", "0"]
    assert calls[-1] == ["nvmlDeviceGetFanSpeed", "3"]


def test_a_recording_is_played_back(lib: Path, script: Script) -> None:
    def once(value: object = None, code: int = 0, args: object = ()) -> dict[str, object]:
        return {"args": args, "return": code, "value": value, "latency_us": 40}

    calls = {
        "nvmlDeviceGetName": [once("NVIDIA L4")],
        "nvmlDeviceGetPowerUsage": [once(31000), once(33000)],
        "nvmlDeviceGetClockInfo": [once(2040, args=[1]), once(code=3, args=[3])],
        "nvmlDeviceGetEccMode": [once([1, 0])],
        "nvmlDeviceGetUtilizationRates": [once({"gpu": 12, "memory": 3})],
        "nvmlDeviceGetFanSpeed": [once(code=4)],
        "nvmlDeviceGetFieldValues": [once([{"fieldId": 82, "nvmlReturn": 15, "value": None}])],
    }
    script.write(replay({"driver": "580.95.05", "cuda": 13000, "devices": [{"calls": calls}]}))
    asked = ["nvmlDeviceGetName(cards[0])", "nvmlDeviceGetPowerUsage(cards[0])"]
    asked += ["nvmlDeviceGetClockInfo(cards[0], 1)", "nvmlDeviceGetEccMode(cards[0])"]
    assert values_of(asked, lib, script) == ["NVIDIA L4", 33000, 2040, [1, 0]]
    code = (
        "say(code(n.nvmlDeviceGetFanSpeed, cards[0]), code(n.nvmlDeviceGetClockInfo, cards[0], 3), "
    )
    code += (
        "n.nvmlDeviceGetFieldValues(cards[0], [82])[0].nvmlReturn, n.nvmlSystemGetDriverVersion())"
    )
    assert ask(lib, script, START + code) == [4, 3, 15, "580.95.05"]


@pytest.mark.parametrize("tool", [("gpustat", "--json"), ("nvitop", "--once")], ids=lambda t: t[0])
def test_a_known_tool_runs_unchanged(lib: Path, script: Script, tool: tuple[str, str]) -> None:
    script.write(device(0, util_gpu=77), device(1), f"device 0 process {os.getpid()} compute 1e10")
    script.add("device 2 lost", device(3, mig_mode=1), mig(3, 0, gi=1), mig(3, 1, gi=2))
    program = Path(sys.executable).with_name(tool[0])
    variables = env(lib, script) | {"LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [program, tool[1]], env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "H100 80GB HBM3" in done.stdout
    assert str(os.getpid()) in done.stdout
    assert "77" in done.stdout
