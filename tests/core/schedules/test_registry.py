"""The table of schedules and the one function that builds from it: names, sizes, messages."""

from __future__ import annotations

import pickle
from itertools import product

import pytest

from pipelab.core.schedules import SCHEDULES, schedule
from pipelab.errors import PipelabError


def test_every_schedule_says_where_it_comes_from():
    for name, info in SCHEDULES.items():
        assert info.name == name and info.family and info.formulas and info.description.endswith(".")
        assert info.paper or name in ("naive", "forward-only")
        assert schedule(name, num_ranks=2, num_microbatches=4).name == name


def test_the_registry_is_a_read_only_mapping():
    with pytest.raises(TypeError):
        SCHEDULES["mine"] = None
    assert "gpipe" in SCHEDULES and "gpip" not in SCHEDULES and 7 not in SCHEDULES
    assert SCHEDULES.get("gpip") is None and SCHEDULES.get("gpipe").name == "gpipe"
    assert list(SCHEDULES) == [info.name for info in SCHEDULES.values()]


@pytest.mark.parametrize("kind", [KeyError, PipelabError])
def test_a_missing_key_is_named_with_the_nearest(kind):
    with pytest.raises(kind) as caught:
        SCHEDULES["gpip"]
    assert str(caught.value).startswith("schedule is 'gpip'; did you mean 'gpipe'?\nAllowed: 'naive', ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_registry_prints_each_schedule_under_its_family_with_its_formulas_and_sizes():
    text = str(SCHEDULES)
    words = " ".join(text.split())
    for name, info in SCHEDULES.items():
        assert text.splitlines().count(f"{info.family}:") == 1
        assert f"\n  {name} " in text
        for part in (info.description, info.formulas, info.constraint):
            assert " ".join(part.split()) in words
    assert max(map(len, text.splitlines())) <= 110
    assert repr(SCHEDULES).startswith("<SCHEDULES: naive, gpipe, ")


def test_the_registry_is_a_table_in_a_notebook():
    html = SCHEDULES._repr_html_()
    assert html.count("<tr>") == len(SCHEDULES) + 1
    for cell in ("linear", "GPipe, arXiv 1811.06965", "1 or more", "m mod p = 0 in the paper; here any m"):
        assert f"<td>{cell}</td>" in html
    assert "F&amp;B" in html and "F&B" not in html


def test_in_a_terminal_it_shows_itself_as_print_does():
    from IPython.lib.pretty import pretty

    assert pretty(SCHEDULES) == str(SCHEDULES)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(PipelabError, match=r"schedule is '1f1'; did you mean '1f1b'\?"):
        schedule("1f1", num_ranks=2, num_microbatches=2)


def test_without_stages_per_rank_a_schedule_has_the_least_that_it_takes():
    for name, info in SCHEDULES.items():
        one = schedule(name, num_ranks=2, num_microbatches=4)
        assert one.stages_per_rank == info.stages_per_rank[0] * one.placement.chains
    assert schedule("zb-v", num_ranks=2, num_microbatches=4).stages_per_rank == 2


def test_a_linear_schedule_with_chunks_says_which_schedules_take_them():
    with pytest.raises(
        PipelabError, match=r"gpipe takes stages_per_rank=1, not 2.*interleaved-1f1b"
    ) as caught:
        schedule("gpipe", num_ranks=2, num_microbatches=2, stages_per_rank=2)
    assert "1f1b, " not in str(caught.value).replace("interleaved-1f1b", "")


@pytest.mark.parametrize("v", [1, 3])
def test_a_schedule_on_a_V_takes_two_stages_a_rank(v):
    with pytest.raises(
        PipelabError, match=rf"zb-v takes stages_per_rank=2, not {v}\. Schedules that take {v}: "
    ):
        schedule("zb-v", num_ranks=2, num_microbatches=2, stages_per_rank=v)


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match=r"schedule 'gpipe'\(\) got an unexpected keyword 'warmup'"):
        schedule("gpipe", num_ranks=2, num_microbatches=2, warmup=3)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("num_rank", "num_ranks"),
        ("num_micro_batches", "num_microbatches"),
        ("stage_per_rank", "stages_per_rank"),
    ],
)
def test_a_misspelt_size_is_named_before_the_missing_one(given, meant):
    sizes = {"num_ranks": 2, "num_microbatches": 4, "stages_per_rank": 1}
    sizes[given] = sizes.pop(meant)
    with pytest.raises(TypeError, match=rf"got an unexpected keyword '{given}'; did you mean '{meant}'"):
        schedule("gpipe", **sizes)


def test_a_word_that_begins_several_names_suggests_each_of_them():
    with pytest.raises(PipelabError, match=r"did you mean '.*' or '.*'") as caught:
        schedule("interleaved", num_ranks=2, num_microbatches=4)
    hint = str(caught.value).splitlines()[0]
    assert [name for name in SCHEDULES if f"'{name}'" in hint] == [
        n for n in SCHEDULES if n.startswith("interleaved")
    ]


def test_missing_sizes_are_named_with_an_example():
    with pytest.raises(
        TypeError, match=r"schedule\('gpipe'\) needs num_microbatches too, such as schedule\('gpipe', "
    ):
        schedule("gpipe", num_ranks=2)
    with pytest.raises(TypeError, match=r"needs num_ranks and num_microbatches"):
        schedule("gpipe")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(0, 1), (1, 0), (-3, 4)])
def test_sizes_below_1_are_refused(name, p, m):
    with pytest.raises(PipelabError, match="it must be at least 1"):
        schedule(name, num_ranks=p, num_microbatches=m)


@pytest.mark.parametrize("size", [1.5, "2", None, True])
def test_sizes_that_are_no_integers_are_type_errors(size):
    with pytest.raises(TypeError, match="num_microbatches must be an integer"):
        schedule("gpipe", num_ranks=2, num_microbatches=size)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(4, 10**12), (10**12, 4), (2**11, 2**11 + 1), (1, 10**30)])
@pytest.mark.timeout(5)
def test_huge_sizes_are_refused_at_once(name, p, m):
    with pytest.raises(PipelabError, match=r"the limit is 4,194,304"):
        schedule(name, num_ranks=p, num_microbatches=m)


@pytest.mark.parametrize(
    ("name", "m"), [("gpipe", 2**11 - 1), ("zb-h1", 700), ("zb-v", 400), ("dualpipev", 600)]
)
def test_the_limit_counts_backwards_and_chunks_too(name, m):
    with pytest.raises(PipelabError, match=r"limit is 4,194,304"):
        schedule(name, num_ranks=2**11, num_microbatches=m)


@pytest.mark.parametrize(("p", "m", "v"), list(product((1, 2, 3, 4, 7, 8), (1, 2, 3, 5, 8, 13), (1, 2, 3))))
def test_the_looped_schedules_take_every_size(p, m, v):
    for name in ("forward-only", "interleaved-1f1b", "looped-bfs", "interleaved-zb"):
        one = schedule(name, num_ranks=p, num_microbatches=m, stages_per_rank=v)
        assert (one.num_ranks, one.num_stages, one.num_microbatches) == (p, p * v, m)


@pytest.mark.parametrize(("p", "m"), list(product((1, 2, 3, 4, 7, 8), (1, 2, 3, 5, 8, 13))))
def test_the_others_on_one_chain_take_every_size_too(p, m):
    for name in ("naive", "gpipe", "1f1b", "eager-1f1b", "zb-h1", "zb-h2", "zb-v", "dualpipev"):
        one = schedule(name, num_ranks=p, num_microbatches=m)
        assert (one.num_ranks, one.num_microbatches) == (p, m)


@pytest.mark.parametrize(("p", "m"), list(product((2, 4, 6), (1, 2, 3, 5, 8, 13))))
def test_those_on_two_chains_take_every_size_of_an_even_number_of_ranks(p, m):
    for name in ("dualpipe", "chimera"):
        one = schedule(name, num_ranks=p, num_microbatches=m)
        assert (one.num_ranks, one.num_microbatches) == (p, m)
