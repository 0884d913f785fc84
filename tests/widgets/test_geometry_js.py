"""The geometry of the timeline, run by node where node is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelab.core.quantities import as_bytes, as_seconds
from pipelab.plots.coverage import coverage
from tests.widgets.node import assert_tests_pass, needs_node, run_node

pytestmark = needs_node


def node(*arguments: str, folder: Path) -> str:
    return run_node("geometry", *arguments, folder=folder)


def test_the_geometry_holds(tmp_path):
    assert_tests_pass("geometry", tmp_path)


SECONDS = [0.0, 33.0, 0.0123, 0.9994, 0.9996, 1e-6, 2.5e-7, 999.4, 1234.0, 98765.4, 0.00099951, 7.126]
BYTES = [
    0.0,
    1.0,
    100.0,
    999.4,
    999.6,
    1024.0,
    4 * 2.0**20,
    2.6 * 2.0**30,
    1e15,
    1.0990e15,
    999.5 * 2.0**40,
    2.0**50,
    1.5e16,
    1e30,
]


@pytest.mark.parametrize(
    ("script", "values", "printed"), [("asSeconds", SECONDS, as_seconds), ("asBytes", BYTES, as_bytes)]
)
def test_quantities_read_as_python_prints_them(tmp_path, script, values, printed):
    call = f"console.log(JSON.stringify({json.dumps(values)}.map(g.{script})))"
    (tmp_path / "print.mjs").write_text(f"import * as g from './geometry.under_test.mjs'; {call}")
    assert json.loads(node("print.mjs", folder=tmp_path)) == [printed(value) for value in values]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_compared_timeline_with_room_has_the_height_of_one_that_stands_alone(tmp_path, ranks):
    from pipelab.widgets.compare_view import height_of_each
    from tests.plots.sizes import trace

    layout = f"g.layoutOf({{ rows: {ranks}, strips: 0, width: 900, left: 60, right: 12, height: 0 }})"
    script = f"import * as g from './geometry.under_test.mjs'; console.log({layout}.height)"
    (tmp_path / "height.mjs").write_text(script)
    assert int(node("height.mjs", folder=tmp_path)) == height_of_each((trace(ranks, 4),))


def test_a_pixel_is_covered_as_matplotlibs_is(tmp_path):
    import numpy as np

    random = np.random.default_rng(3)
    edges = np.sort(random.random(2000)) * 50
    start, end = edges[::2], edges[1::2]
    expected = coverage(np.zeros(1000, dtype=int), start, end, num_slots=1, width=211, begin=3.0, stop=41.0)[
        0
    ]
    script = f"""import * as g from './geometry.under_test.mjs';
        const data = {{ start: {start.tolist()}, end: {end.tolist()},
                        paint: Array(1000).fill(0), top: Array(1000).fill(-0.4), bottom: Array(1000).fill(0.4) }};
        const into = new Float64Array(211);
        g.addCoverage(into, data, 0, 1000, [3, 41], 211, 0.8);
        console.log(JSON.stringify([...into]))"""
    (tmp_path / "coverage.mjs").write_text(script)
    np.testing.assert_allclose(json.loads(node("coverage.mjs", folder=tmp_path)), expected, atol=1e-9)
