"""As an operator would: an authority, a token, a node that enrols while its agent runs, its rows."""

from __future__ import annotations

from pathlib import Path

import httpx

from flopwatch_agent.certificates import Files, load
from processes import agent, await_readings, awaited, collector, done, environment, running

CONFIG = """
[listen]
enroll = "127.0.0.1:0"
"""


def test_a_node_enrols_and_its_agent_streams(tmp_path: Path) -> None:
    keeper, node = tmp_path / "collector", tmp_path / "node"
    made = done("trust", "init", "--data", str(keeper))
    assert made.returncode == 0, made.stderr
    env = environment(FLOPWATCH_SOCKET=str(tmp_path / "jobs.sock"))
    with collector(keeper, CONFIG) as secured:
        door = secured.process.line("enroll ")
        arguments = agent(secured.grpc, node, cluster="secure", node="n1", interval="1s")
        with running(*arguments, log=tmp_path / "agent.log", env=env) as measuring:
            await_readings(measuring, "processor")
            create = ("tokens", "create", "--cluster", "secure", "--nodes", "n?")
            (tmp_path / "token").write_text(done(*create, "--data", str(keeper)).stdout)
            enrolled = done(
                *("enroll", door, "--token-file", str(tmp_path / "token"), "--data", str(node)),
                *("--cluster", "secure", "--node", "n1"),
            )
            assert enrolled.returncode == 0, enrolled.stderr
            assert enrolled.stdout.startswith("spiffe://flopwatch/flopwatch/cluster/secure/node/n1")
            awaited(lambda: secured.rows("secure"), "rows of the node that was enrolled")
            listed = httpx.get(f"{secured.url}/api/v1/agents", timeout=30, trust_env=False).json()
            (certified,) = listed["agents"]
            assert certified["certificate_starts"] < certified["certificate_expires"]
            address = measuring.said().partition("metrics_listening address=")[2].split()[0]
            page = httpx.get(f"http://{address}/metrics", timeout=30, trust_env=False).text
            assert 'flopwatch_agent_certificate_state{state="ok"} 1.0' in page
    assert load(Files.enrolled(node)).name.node == "n1"


def test_a_listener_that_others_could_reach_needs_certificates(tmp_path: Path) -> None:
    refused = done("collector", "--grpc", "0.0.0.0:0", "--data", str(tmp_path / "data"))
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "listen.grpc is '0.0.0.0:0'" in line
    assert "flopwatch trust init" in line
