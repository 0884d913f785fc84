"""Tables as text and as HTML."""

from __future__ import annotations

from pipelab.core.tables import html_table, text_table


def test_words_are_left_and_numbers_right():
    assert (
        text_table(["a", "bb"], [["long", "1"], ["s", "22"]], "note") == "a     bb\nlong   1\ns     22\nnote"
    )


def test_a_table_without_rows_is_its_header():
    assert text_table(["a", "b"], []) == "a  b"


def test_html_escapes_every_part():
    html = html_table(["<h>"], [["<c>"]], "<t>", "<n>")
    assert not any(f"<{tag}>" in html for tag in "hctn")
    assert html.count("&lt;") == 4 and html.startswith("<table><caption>")


def test_ipython_shows_values_as_print_does():
    from IPython.lib.pretty import pretty

    import pipelab as pp

    schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=2)
    trace = pp.simulate(schedule, pp.Costs.uniform(2))
    for value in (schedule, trace, trace.report(), pp.compare([trace])):
        assert pretty(value) == str(value)
