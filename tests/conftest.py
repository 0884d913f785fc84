"""What holds for every test: GPU tests skip without a GPU, and figures are closed.

Under PIPELAB_TESTS=all nothing but a test marked `gpu` may skip.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator

import pytest

EVERYTHING_MUST_RUN = os.environ.get("PIPELAB_TESTS") == "all"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return  # torch takes seconds to import: ask it only when somebody wants to know
    import torch

    if not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("gpu"):
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:  # a whole file, as by pytest.importorskip
        _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where everything was asked for, a skip is a failure: a missing package or browser is seen."""
    if EVERYTHING_MUST_RUN:
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"PIPELAB_TESTS=all allows only tests marked `gpu` to skip. This one said: {reason}"


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """A figure left open by one test is memory and a warning in another."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tests' models are tiny: with one thread an operation they run faster than with several."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(before)
