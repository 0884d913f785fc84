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
