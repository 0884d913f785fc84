from __future__ import annotations

import threading
from typing import Any

import pytest

import pipelab as pp
from pipelab.widgets.runner import Runner
from tests.plots.sizes import trace

LIMIT = 10.0


class Scripted:
    """Stands for a measurement: does what it is told, until it is stopped."""

    def __init__(self, result: Any = None, wait: bool = False) -> None:
        self.result = trace(2, 2) if result is None else result
        self.stopped = threading.Event()
        self.wait = wait

    def run(self, progress):
        for done in range(1000):
            progress(done, 1000)
        if self.wait and self.stopped.wait(LIMIT):
            raise KeyboardInterrupt
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def stop(self) -> None:
        self.stopped.set()


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
def runner(heard) -> Runner:
    def ended(measurement, result):
        heard.append(result)

    return Runner(
        lambda: heard.append("began"), lambda done, total: heard.append((done, total)), ended, lambda: None
    )


def test_a_run_here_returns_its_trace(runner, heard):
    one = trace(3, 3)
    assert runner.here(lambda: Scripted(one)) is one
    assert heard[0] == "began" and heard[-1] is one
    assert not runner.is_busy


def test_progress_is_told_rarely(runner, heard):
    runner.here(Scripted)
    assert 1 <= sum(isinstance(item, tuple) for item in heard) < 20


def test_an_error_here_is_raised_and_told(runner, heard):
    with pytest.raises(ZeroDivisionError):
        runner.here(lambda: Scripted(ZeroDivisionError("x")))
    assert isinstance(heard[-1], ZeroDivisionError)
    assert runner.wait(0)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3), KeyboardInterrupt()])
def test_an_error_behind_is_told_and_the_next_run_works(runner, heard, error):
    runner.behind(lambda: Scripted(error))
    assert runner.wait(LIMIT)
    assert heard[-1] is error
    assert runner.here(Scripted).num_ranks == 2


def test_one_run_at_a_time(runner):
    runner.behind(lambda: Scripted(wait=True))
    with pytest.raises(pp.PipelabError, match="under way"):
        runner.here(Scripted)
    runner.stop()
    assert runner.wait(LIMIT)


def test_a_stopped_run_is_told_as_interrupted(runner, heard):
    runner.behind(lambda: Scripted(wait=True))
    runner.stop()
    assert runner.wait(LIMIT)
    assert isinstance(heard[-1], KeyboardInterrupt)


def test_stopping_nothing_is_fine(runner):
    runner.stop()
    assert runner.wait(0)


def broken(*_: Any) -> None:
    raise ZeroDivisionError("of whoever listens")


@pytest.mark.parametrize("how", ["here", "behind"])
def test_a_run_that_could_not_begin_blocks_no_other(heard, how):
    runner = Runner(broken, lambda *_: None, lambda _, result: heard.append(result), lambda: None)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            getattr(runner, how)(Scripted)
    assert runner.wait(LIMIT) and len(heard) == 2


def test_where_there_can_be_no_more_threads_the_next_run_works(runner, heard, monkeypatch):
    def full(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(threading.Thread, "start", full)
        runner.behind(Scripted)
    assert isinstance(heard[-1], RuntimeError)
    assert runner.here(Scripted).num_ranks == 2


def test_a_run_is_under_way_until_its_end_has_been_told():
    seen = []

    def ended(*_: Any) -> None:
        with pytest.raises(pp.PipelabError, match="under way"):
            runner.here(Scripted)
        seen.append("ended")

    def freed() -> None:
        seen.append("freed")
        if len(seen) == 2:
            runner.here(Scripted)

    runner = Runner(lambda: None, lambda *_: None, ended, freed)
    runner.here(Scripted)
    assert seen == ["ended", "freed", "ended", "freed"]
