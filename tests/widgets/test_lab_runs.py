"""The Lab runs: here or behind, stopped or broken, and what is then said."""

from __future__ import annotations

import contextlib
import threading

import pytest
from torch import nn

import pipelab as pp
from tests.widgets.labs import LIMIT, Slow, batch, live_lab, slow_lab, two_layers


@pytest.fixture
def lab(profile):
    lab = pp.Lab.from_profile(profile, batch_size=48, schedule="1f1b", num_ranks=4, num_microbatches=8)
    yield lab
    lab.close()


@pytest.fixture
def live():
    lab = live_lab()
    yield lab
    lab.close()


@pytest.fixture
def slow():
    lab = slow_lab()
    yield lab
    lab.close()


def test_a_lab_without_a_model_says_why_it_cannot_run(lab):
    assert lab._controls.run.disabled
    with pytest.raises(pp.PipelabError, match="nothing to run"):
        lab.run()
    assert "nothing to run" in lab.message
    assert "nothing to run" in lab._status.value  # a button that is disabled is not asked why


def test_a_run_from_code_gives_the_measured_trace(live):
    trace = live.run()
    assert live.measured is trace
    assert trace.clock == "virtual" and trace.schedule == live.schedule
    assert live.measured_plan == live.plan and live.measured_is_current
    assert "Timeline of" in live.text and "virtual clock" in live.text
    assert "Measured on 2 virtual devices" in live._status.value
    live.view = "both"
    assert "virtual clock" in live.text and "simulated clock" in live.text
    assert live.png() != live._gallery.upper.png()


def test_the_run_button_runs_behind_and_the_measured_view_appears(live):
    live._controls.run.click()
    assert live.wait(LIMIT)
    assert live.measured.clock == "virtual"
    assert not live.running
    assert live._controls.progress.value == live._controls.progress.max
    assert (live._controls.run.disabled, live._controls.stop.disabled) == (False, True)


def test_a_change_of_plan_marks_what_was_measured(live):
    live.run()
    live.num_microbatches = 2
    assert not live.measured_is_current
    assert "The plan has changed" in live._status.value
    live.num_microbatches = 8
    assert live.measured_is_current
    assert "The plan has changed" not in live._status.value


def test_stop_ends_a_run_and_the_next_one_works(slow):
    slow.start()
    assert slow.running
    slow._controls.stop.click()
    assert slow.wait(LIMIT)
    assert slow.measured is None
    assert "Stopped" in slow._status.value and slow.message == ""
    assert slow.run().num_ranks == 2


def test_the_plan_may_change_while_it_runs(slow):
    slow.start()
    slow.num_microbatches = 4
    assert slow.wait(LIMIT)
    assert slow.measured.schedule.num_microbatches == 8
    assert not slow.measured_is_current


def test_one_run_at_a_time(slow):
    slow.start()
    with pytest.raises(pp.PipelabError, match="under way"):
        slow.run()
    slow.stop()
    assert slow.wait(LIMIT)


def test_an_error_of_the_model_is_seen_in_the_widget_and_keeps_its_type_in_code():
    class Broken(Slow):
        def forward(self, x):
            raise LookupError("mine <b>")

    x, y = batch()
    profile = two_layers()
    lab = pp.Lab(
        Broken(), x, y, loss_fn=nn.functional.mse_loss, profile=profile, num_ranks=2, devices=pp.virtual(2)
    )
    lab.start()
    assert lab.wait(LIMIT)
    assert "LookupError: mine <b>" in lab.message
    assert "mine &lt;b&gt;" in lab._error.value
    with pytest.raises(LookupError):
        lab.run()
    lab.close()


def test_closing_while_it_runs_ends_the_run(slow):
    before = threading.active_count()
    slow.start()
    slow.close()
    assert threading.active_count() <= before
    assert slow.measured is None


def bad(change: object) -> None:
    raise ZeroDivisionError("of an observer")


@pytest.mark.parametrize("name", ["running", "measured"])
@pytest.mark.parametrize("how", ["start", "run"])
def test_an_observer_that_raises_does_not_keep_the_lab_from_running_again(live, name, how):
    live.observe(bad, name)
    with contextlib.suppress(ZeroDivisionError):
        getattr(live, how)()
    assert live.wait(LIMIT)
    assert not live.running and not live._controls.run.disabled and live._controls.stop.disabled
    assert "ZeroDivisionError: of an observer" in live.message
    live.unobserve(bad, name)
    assert live.run() is live.measured and live.message == ""


def test_whoever_hears_that_a_run_is_over_may_begin_the_next(live):
    measured = []

    def again(change):
        if not change.new and not measured:
            measured.append(live.measured)
            live.run()

    live.observe(again, "running")
    live.run()
    assert measured and live.measured is not measured[0] and not live.running


def test_a_refusal_does_not_outlive_its_cause(slow):
    slow.start()
    with pytest.raises(pp.PipelabError, match="under way"):
        slow.start()
    assert "under way" in slow.message
    assert slow.wait(LIMIT)
    assert slow.measured is not None and slow.message == ""


def test_a_wrong_type_in_the_model_is_told_with_its_type_and_notes():
    class Wrong(Slow):
        def forward(self, x):
            raise TypeError("mine")

    x, y = batch()
    loss_fn = nn.functional.mse_loss
    lab = pp.Lab(Wrong(), x, y, loss_fn=loss_fn, profile=two_layers(), devices=pp.virtual(2))
    with pytest.raises(TypeError, match="mine"):
        lab.run()
    assert "TypeError: mine\n" in lab.message
    lab.start()
    assert lab.wait(LIMIT)
    assert "TypeError: mine\n" in lab.message
    lab.close()


def test_an_error_of_a_run_that_is_over_before_start_returns_stays(live, monkeypatch):
    def at_once(make):
        live._runner._result(live._runner._begin(make))

    def broken(*_):
        raise ZeroDivisionError("at once")

    monkeypatch.setattr("pipelab.widgets.runs.Measurement.run", broken)
    monkeypatch.setattr(live._runner, "behind", at_once)
    live.start()
    assert "at once" in live.message


def test_a_closed_lab_runs_and_pins_nothing(live):
    live.close()
    for wish in (live.run, live.start, live.pin):
        with pytest.raises(pp.PipelabError, match="This Lab is closed"):
            wish()
    assert live.measured is None and live.pinned == () and not live.running


def test_of_runs_one_thing_is_said_at_a_time(live):
    live.run()
    live.num_microbatches = 2
    assert "Measured on" not in live._status.value and "this is the prediction" in live._status.value.lower()
    live.num_microbatches = 8
    assert "Measured on" in live._status.value


def test_while_it_runs_that_is_said(slow):
    slow.start()
    assert "Running ..." in slow._status.value
    slow.num_microbatches = 4
    assert "Running ..." in slow._status.value
    slow.stop()
    assert slow.wait(LIMIT)
    assert "Running" not in slow._status.value and "Stopped" in slow._status.value
