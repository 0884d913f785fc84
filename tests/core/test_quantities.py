"""Numbers as people read them."""

from __future__ import annotations

import pytest

from pipelab.core.quantities import as_bytes, as_percent, as_seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (33.0, "33 s"),
        (1, "1 s"),
        (0.9999, "1 s"),
        (0.5, "500 ms"),
        (0.0123, "12.3 ms"),
        (0.00099996, "1 ms"),
        (1.2345e-5, "12.3 us"),
        (1e-9, "0.001 us"),
        (12345.6, "12,346 s"),
        (-0.5, "-500 ms"),
        (float("inf"), "inf s"),
    ],
)
def test_seconds(value, text):
    assert as_seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (100, "100 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (2**20, "1 MiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (2**60, "1.05e+06 TiB"),
    ],
)
def test_bytes(value, text):
    assert as_bytes(value) == text


def test_percent():
    assert as_percent(3 / 11) == "27.3 %"
