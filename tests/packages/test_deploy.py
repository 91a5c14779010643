"""The container file and the Helm chart: linted, rendered by Helm, held against Kubernetes' schemas."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml

from fakenvml import Script, build, device, env
from fakenvml.library import SONAME
from flopwatch_agent.config import load_config
from flopwatch_collector import config as collector_config

ROOT: Final = Path(__file__).resolve().parents[2]
CHART: Final = ROOT / "deploy/helm/flopwatch"
CONTAINER: Final = ROOT / "deploy/container"
KUBERNETES: Final = "1.31"

MINIMAL: Final = {"agent": {"collector": "collector.example:9751"}}
FULL: Final = {
    "cluster": "atlas",
    "image": {"repository": "registry.example/flopwatch", "tag": "1.2.3", "pullSecrets": ["pull"]},
    "agent": {"driverRoot": "/", "metricsPort": 9999, "config": "[host]\nenabled = false\n"},
    "collector": {
        "enabled": True,
        "config": "[rules]\npage_simulated = true\n",
        "sidecars": [{"name": "tls", "image": "proxy:1", "ports": [{"containerPort": 9761}]}],
        "volumes": [{"name": "certificates", "secret": {"secretName": "certificates"}}],
        "storage": {"className": "fast"},
    },
}

# In a process of its own: Helm's engine is Go's runtime, with signal handlers and threads of its own.
ENGINE: Final = """
import json, sys, helm_python
what, chart, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if what == "lint":
    print(json.dumps(helm_python.lint(chart, values, strict=True, kube_version="v1.31.0")))
else:
    with helm_python.Chart.load(chart) as loaded:
        print(json.dumps(loaded.render(values, name="fw", namespace="monitoring")))
"""


def helm(what: str, chart: Path, values: Any) -> Any:
    command = [sys.executable, "-c", ENGINE, what, str(chart), json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rendered(values: Any) -> dict[str, dict[str, Any]]:
    """Every object that the chart makes, by kind and name."""
    texts = helm("render", CHART, values).values()
    objects = [item for text in texts for item in yaml.safe_load_all(text) if item]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in objects}


@pytest.mark.parametrize("values", [MINIMAL, FULL], ids=["minimal", "full"])
def test_helm_finds_nothing_wrong(values: Any) -> None:
    report = helm("lint", CHART, values)
    assert report["errors"] == []
    assert [m for m in report["messages"] if "icon" not in m["error"]] == []


@pytest.mark.parametrize("values", [MINIMAL, FULL], ids=["minimal", "full"])
def test_kubernetes_would_take_every_object(values: Any) -> None:
    for item in rendered(values).values():
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_a_misspelt_field_would_be_noticed() -> None:
    item = rendered(MINIMAL)["DaemonSet/fw-agent"]
    item["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(item, KUBERNETES, strict=True)


def test_the_daemons_read_the_configuration_that_the_chart_writes(tmp_path: Path) -> None:
    objects = rendered(FULL)
    agent, collector = tmp_path / "agent.toml", tmp_path / "collector.toml"
    agent.write_text(objects["ConfigMap/fw-agent"]["data"]["agent.toml"])
    collector.write_text(objects["ConfigMap/fw-collector"]["data"]["collector.toml"])
    read = load_config(agent, {})
    assert (read.cluster, read.collector) == ("atlas", "fw-collector.monitoring:9761")
    assert (read.metrics.listen, read.host.enabled) == ("0.0.0.0:9999", False)
    assert collector_config.load(collector, {}, {}).rules.page_simulated


def test_the_agent_sees_the_driver_the_kubelet_and_the_hosts_processes() -> None:
    spec = rendered(FULL)["DaemonSet/fw-agent"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    paths = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
    assert mounted.keys() == {volume["name"] for volume in spec["volumes"]}
    assert spec["hostPID"] is True
    assert (paths["driver"], mounted["driver"]) == ("/", "/driver")
    assert paths["pod-resources"] == mounted["pod-resources"]
    assert container["image"] == "registry.example/flopwatch-agent:1.2.3"


def test_without_a_collector_helm_says_what_is_missing() -> None:
    with pytest.raises(AssertionError, match=r"agent\.collector: HOST:PORT"):
        rendered({})


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_hadolint_finds_nothing_in_the_container_file() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [str(hadolint), "--failure-threshold", "style", str(CONTAINER / "Containerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "place", ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/lib"]
)
def test_the_driver_is_found_below_its_root_even_if_it_comes_later(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, place: str
) -> None:
    root, links = tmp_path / "driver", tmp_path / "links"
    subprocess.run([CONTAINER / "link-driver", root, links], check=True)
    text = (CONTAINER / "Containerfile").read_text()
    searched = next(line for line in text.splitlines() if line.startswith("ENV LD_LIBRARY_PATH="))
    search = searched.partition("=")[2].replace("/opt/driver", str(links))
    assert search.split(":") == [str(path) for path in sorted(links.iterdir())]
    told = {
        **env(tmp_path, Script(tmp_path / "script").write(device(0))),
        "LD_LIBRARY_PATH": os.pathsep.join([search, os.environ.get("LD_LIBRARY_PATH", "")]),
    }
    looking = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"

    def cards() -> str:
        command = [sys.executable, "-c", looking]
        return subprocess.run(command, env=told, capture_output=True, text=True, check=False).stdout

    assert cards() == ""
    (root / place).mkdir(parents=True)
    shutil.copy(build(tmp_path_factory.getbasetemp() / "nvml") / SONAME, root / place)
    assert cards() == "1\n"
