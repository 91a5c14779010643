"""Jobs over HTTP, from a real web process over a real store."""

from __future__ import annotations

import pytest

from flopwatch_collector.web import shapes
from web.test_web_api import moment
from web.web_server import Web


def test_jobs_are_listed_with_their_figures(web: Web) -> None:
    answer = web.get("/api/v1/jobs", start=moment(web.end - 900_000), end=moment(web.end)).json()
    shapes.JobsAnswer.model_validate(answer)
    llama = next(job for job in answer["jobs"] if job["cluster"] == "atlas")
    assert (llama["name"], llama["team"], llama["simulated"]) == ("llama", "t", False)
    assert llama["hfu"]["value"] == pytest.approx(0.4)
    only = web.get("/api/v1/jobs", cluster="atlas").json()["jobs"]
    assert {job["cluster"] for job in only} == {"atlas"}


def test_a_job_has_the_figures_of_every_subject_and_an_answer(web: Web) -> None:
    answer = web.get("/api/v1/jobs/llama").json()
    shapes.JobAnswer.model_validate(answer)
    assert answer["cards"]["allocated"] == pytest.approx(3.0, rel=0.02)
    assert answer["hfu"]["value"] == pytest.approx(0.4)
    said = answer["answer"]
    assert said["verdict"]["value"] == "both"
    assert said["verdict"]["machine"]["evidence"][-1] == "xid 79: 1×, first on n0 s0"
    assert said["bridge"]["reason"] == "the job reports no MFU of its own"
    assert said["peers"]["count"] == 0
    assert said["stragglers"]["judged"] is False
    assert said["receipt"].startswith("3 x H100, 0.3 h, MFU 28-41 %, HFU 40.0 %")


def test_a_window_is_cut_to_the_life_of_the_job(web: Web) -> None:
    start, end = moment(web.end - 3_600_000), moment(web.end - 60_000)
    found = web.get("/api/v1/jobs/llama", start=start, end=end).json()
    assert (found["end"], found["window_s"]) == (end, 19 * 60)
    past = moment(web.end - 86_400_000)
    answer = web.get("/api/v1/jobs/llama", window="1h", end=past)
    assert answer.status_code == 404
    assert "held no card in this window; it ran from 2" in answer.json()["detail"]


def test_a_job_nobody_ran_is_not_found(web: Web) -> None:
    answer = web.get("/api/v1/jobs/nobody", cluster="atlas")
    assert answer.status_code == 404
    said = "job 'nobody' of cluster 'atlas' held no card in the last 30 days"
    assert answer.json()["detail"] == said
