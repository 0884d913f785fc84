from __future__ import annotations

import base64
import gc

import anywidget
import ipywidgets as W
import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from matplotlib.figure import Figure

import pipelab as pp
from pipelab.widgets import shown
from pipelab.widgets.shown import LIVE, Shown, parts_shown


class One(Shown, anywidget.AnyWidget):
    """A widget of a number."""

    _esm = "export default { render() {} };\n"

    def __init__(self, number: float) -> None:
        self.number = number
        super().__init__()

    @property
    def text(self) -> str:
        return f"a line to {self.number} <b>"

    def static_figure(self) -> Figure:
        figure = Figure(figsize=(3, 2))
        figure.add_subplot().plot([0, self.number])
        return figure


class Several(Shown, W.VBox):
    """A box that is one thing."""

    text = "several"

    def static_figure(self) -> Figure:
        return Figure(figsize=(1, 1))


@pytest.fixture
def notebook(monkeypatch):
    """A shell whose outputs are listed as (data, metadata)."""
    shell = InteractiveShell.instance()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    shown._register()

    def show(thing):
        with capture_output() as captured:
            display(thing)
        return [(output.data, output.metadata) for output in captured.outputs]

    yield show
    InteractiveShell.clear_instance()


def tail(data) -> str:
    return data["image/png"][-64:]


def test_a_widget_is_a_picture_with_words_and_beneath_the_live_thing(notebook):
    one = One(3)
    (still, about), (live, _) = notebook(one)
    assert base64.b64decode(still["image/png"]).startswith(b"\x89PNG")
    assert about["image/png"]["alt"] == still["text/plain"] == "a line to 3 <b>"
    assert LIVE not in still
    assert set(live) == {LIVE, "text/plain"} and live[LIVE]["model_id"] == one.model_id
    assert one._static_tail == tail(still)


def test_the_picture_is_the_one_of_now(notebook):
    one = One(3)
    first = notebook(one)[0][0]["image/png"]
    one.number = 4
    second = notebook(one)[0][0]["image/png"]
    assert first != second
    assert one._static_tail.split() == [second[-64:], first[-64:]]


def test_a_box_shows_the_pictures_of_all_it_holds_in_order(notebook):
    one, two, three = One(1), One(2), One(3)
    outputs = notebook(W.VBox([one, W.HBox([W.Label("x"), two]), W.Tab([three])]))
    assert [data["text/plain"] for data, _ in outputs[:3]] == [part.text for part in (one, two, three)]
    assert LIVE in outputs[3][0] and len(outputs) == 4
    assert outputs[3][0]["text/plain"] == ""  # the pictures say it, also where nothing is alive
    assert [part._static_tail for part in (one, two, three)] == [tail(data) for data, _ in outputs[:3]]


def test_a_box_that_is_a_widget_of_ours_shows_one_picture_which_its_first_part_hides(notebook):
    one, two = One(1), One(2)
    outputs = notebook(Several([W.HBox([one]), two]))
    assert len(outputs) == 2 and outputs[0][0]["text/plain"] == "several"
    assert (one._static_tail, two._static_tail) == (tail(outputs[0][0]), "")


def test_a_box_that_shows_itself_in_a_way_of_its_own_keeps_it(notebook):
    class Mine(W.VBox):
        def _ipython_display_(self, **_):
            display({"text/plain": "in my own way"}, raw=True)

    assert notebook(Mine([One(3)])) == [({"text/plain": "in my own way"}, {})]


def test_a_box_that_a_cell_shows_anew_takes_the_place_of_the_last(notebook):
    shell, boxes = InteractiveShell.instance(), [W.VBox([One(3)]) for _ in range(2)]
    for number, box in enumerate(boxes):
        shell.execution_count = number + 1
        notebook(box)
    assert [box.comm is None for box in boxes] == [True, False]
    assert boxes[0].children == ()


def test_other_boxes_are_shown_as_ever(notebook):
    ((data, _),) = notebook(W.VBox([W.Label("x")]))
    assert LIVE in data and "VBox" in data["text/plain"] and "image/png" not in data


def test_whoever_asks_for_a_representation_gets_all_in_one():
    data, metadata = One(3)._repr_mimebundle_()
    assert {LIVE, "image/png", "text/plain"} <= set(data)
    assert metadata["image/png"]["alt"] == data["text/plain"]


def test_a_closed_widget_still_has_its_picture():
    one = One(3)
    one.close()
    data, _ = one._repr_mimebundle_()
    assert "image/png" in data and LIVE not in data


def test_parts_are_found_in_nested_boxes_and_not_in_parts():
    one, two = One(1), One(2)
    several = Several([two])
    assert parts_shown(W.VBox([W.Box([one]), several])) == [one, several]


@pytest.mark.parametrize("suffix", shown.FORMATS)
def test_a_saved_picture_is_the_same_every_time(tmp_path, suffix):
    for name in ("a", "b"):
        One(3).save(tmp_path / f"{name}{suffix}")
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second and len(first) > 500


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(pp.PipelabError, match=r"'picture.bmp' has none of them"):
        One(3).save(tmp_path / "picture.bmp")


def test_pictures_leave_no_figure_behind():
    before = plt.get_fignums()
    One(3).png()
    gc.collect()
    assert plt.get_fignums() == before
