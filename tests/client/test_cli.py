"""The command itself, as people and scripts run it: output, exit codes, one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

RECORDED = Path(__file__).parent / "recorded"


def flopwatch(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (sys.executable, "-m", "flopwatch", *arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class _Api(BaseHTTPRequestHandler):
    """Answers as the API would, from a recording."""

    def do_GET(self) -> None:
        fleet = (RECORDED / "fleet.json").read_bytes()
        if self.path.startswith("/api/v1/fleet"):
            self._say(200, fleet)
        elif self.path.startswith("/api/v1/clusters/atlas"):
            atlas = {**json.loads(fleet)["clusters"][0], "window_s": 900}
            self._say(200, json.dumps(atlas).encode())
        elif self.path.startswith("/api/v1/outages"):
            outage = json.loads(fleet)["clusters"][0]["outages"][0]
            self._say(200, json.dumps({"outages": [{"cluster": "atlas", **outage}]}).encode())
        elif self.path.startswith("/readyz"):
            self._say(200, b"{}")
        elif self.path.startswith("/api/v1/nodes/html"):
            self._say(200, b"<html>")
        else:
            problem = {"title": "Not Found", "detail": "no node 'atlsa-0'"}
            self._say(404, json.dumps(problem).encode())

    def _say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fleet_json_is_exactly_what_the_api_said(api: str) -> None:
    done = flopwatch("fleet", "--json", "--api", api)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip("\n") == (RECORDED / "fleet.json").read_text().rstrip("\n")


def test_views_print_tables(api: str) -> None:
    fleet = flopwatch("fleet", "--api", api)
    assert (fleet.returncode, fleet.stderr) == (0, "")
    assert "95.96" in fleet.stdout
    cluster = flopwatch("cluster", "atlas", "--api", api)
    assert (cluster.returncode, cluster.stderr) == (0, "")
    assert "model_flops" in cluster.stdout
    outages = flopwatch("outages", "--api", api)
    assert (outages.returncode, outages.stderr) == (0, "")
    assert "firing" in outages.stdout
    assert all(len(line) <= 80 for line in (fleet.stdout + cluster.stdout).splitlines())


def test_a_refusal_of_the_api_is_one_line(api: str) -> None:
    done = flopwatch("node", "atlsa-0", "--api", api)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flopwatch: /api/v1/nodes/atlsa-0: no node 'atlsa-0'\n"


def test_something_that_is_no_collector_is_said_to_be_none(api: str) -> None:
    done = flopwatch("node", "html", "--api", api)
    assert done.returncode == 1
    assert "is this a flopwatch collector?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fleet", "--api", "http://127.0.0.1:9"), "cannot reach http://127.0.0.1:9: is the"),
        (("fleet", "--api", "nowhere"), "--api: 'nowhere' is no address"),
        (("fleet", "--windw", "3m"), "--windw; nearest known: --window"),
        (("flet",), "No such command 'flet'; nearest known: fleet"),
        (("cluster",), "NAME"),
        (("up", "--http", "nowhere"), "--http: 'nowhere' is no HOST:PORT"),
        (("simulate",), "--scenario"),
        (("simulate", "--scenario", "/nowhere.toml"), "scenario /nowhere.toml: No such file"),
        (("peaks", "--dtype", "bf17"), "--dtype: unknown dtype 'bf17'"),
        (("probe", "--device", "gpu7"), "--device takes cpu, cuda:N or a card's UUID"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: tuple[str, ...], said: str) -> None:
    done = flopwatch(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_busy_port_is_named_with_its_flag(api: str, tmp_path: Path) -> None:
    busy = api.removeprefix("http://")
    done = flopwatch("up", "--data", str(tmp_path), "--http", busy, "--grpc", "127.0.0.1:0")
    assert done.returncode == 2
    assert done.stderr == f"flopwatch: --http {busy}: Address already in use\n"


def test_peaks_say_the_figure_and_its_clock() -> None:
    done = flopwatch("peaks", "nvidia h100 80gb hbm3", "--dtype", "bf16", "--json")
    assert done.returncode == 0
    (peak,) = json.loads(done.stdout)["peaks"]
    assert (peak["sku"], peak["ref_clock_mhz"]) == ("NVIDIA H100 80GB HBM3", 1830)
    assert peak["dense_flops"] == pytest.approx(989e12, rel=1e-3)


def test_an_unknown_device_is_unknown_and_bad_news() -> None:
    done = flopwatch("peaks", "NVIDIA H100")
    assert (done.returncode, done.stdout) == (1, "unknown\n")
    as_json = flopwatch("peaks", "NVIDIA H100", "--json")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["status"] == "unknown"


def test_mfu_is_worked_out_by_every_convention() -> None:
    # 6 N + 6 L H T = 6 × 7e9 + 6 × 32 × 4096 × 4096 = 45.221 GFLOP per token; 8 cards × 989 TFLOP/s.
    done = flopwatch(
        *("mfu", "--sku", "NVIDIA H100 80GB HBM3", "--dtype", "bf16", "--cards", "8"),
        *("--tokens-per-second", "80000", "--params", "7B", "--layers", "32"),
        *("--hidden", "4096", "--seq", "4096", "--json"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    per_token = 6 * 7e9 + 6 * 32 * 4096 * 4096
    assert answer["convention"] == "causal_half"
    assert answer["flops_per_token"] == pytest.approx(per_token)
    assert answer["mfu"] == pytest.approx(80_000 * per_token / (8 * answer["peak_flops"]))
    assert [c["convention"] for c in answer["conventions"]] == [
        "causal_half",
        "full",
        "params_only",
    ]


def test_mfu_reads_a_models_config(tmp_path: Path) -> None:
    # Llama-3-8B: 8.03 billion parameters, of which 0.525 are the input embedding.
    config = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = flopwatch(
        *("mfu", "--sku", "H100-SXM5", "--dtype", "fp8", "--cards", "8", "--json"),
        *("--tokens-per-second", "1e5", "--config", str(tmp_path / "config.json")),
    )
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert answer["parameters"] == 8_030_261_248
    embedding = 128256 * 4096
    expected = 6 * (answer["parameters"] - embedding) + 6 * 32 * 4096 * 8192
    assert answer["flops_per_token"] == pytest.approx(expected)


def test_mfu_says_what_is_missing() -> None:
    done = flopwatch("mfu", "--sku", "H100-SXM5", "--cards", "8", "--tokens-per-second", "1")
    assert done.returncode == 2
    assert "--params, --layers, --hidden, --seq" in done.stderr


def test_the_daemons_start_without_the_command_lines_libraries() -> None:
    script = (
        "import sys; from flopwatch.__main__ import main; "
        "sys.modules['flopwatch_agent.__main__'] = type(sys)('fake'); "
        "sys.modules['flopwatch_agent.__main__'].main = lambda argv: len(argv); "
        "code = main(['agent', '--a', '--b']); "
        "print(code, sorted({'typer', 'rich', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        (sys.executable, "-c", script), capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "2 []\n"


def test_a_missing_extra_is_named() -> None:
    script = (
        "import importlib, sys; from flopwatch.__main__ import main\n"
        "def absent(name): raise ModuleNotFoundError(name, name='chdb')\n"
        "importlib.import_module = absent\n"
        "sys.exit(main(['collector']))"
    )
    done = subprocess.run(
        (sys.executable, "-c", script), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == (
        "flopwatch collector: chdb is not installed: pip install 'flopwatch[collector]'\n"
    )
