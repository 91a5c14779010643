"""A pytest plugin: what is skipped or expected to fail has not been tested, so it fails.

`make test` and CI load it with ``-p no_skips``.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

import pytest

R = TypeVar("R", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _failed_if_skipped((yield))


def _failed_if_skipped(report: R) -> R:
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped or expected to fail, so not tested: {_reason(report)}"
        report.__dict__.pop("wasxfail", None)
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    expected = report.__dict__.get("wasxfail")
    if expected is not None:
        return expected or "xfail"
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
