"""What a copy between two devices takes."""

import math

import pytest
import torch

import pipelab as pp
from pipelab.core.links import Links
from pipelab.runtime import links as measuring
from pipelab.runtime.links import LARGE, SMALL, line_through


def test_each_two_ranks_have_a_latency_and_a_bandwidth_and_a_rank_reaches_itself_for_free():
    links = pp.measure_links(["cpu", "cpu", "cpu"], repeats=1)
    assert isinstance(links, Links) and links.num_ranks == 3 and links.notes == ()
    for a in range(3):
        for b in range(3):
            assert links.latency[a][b] >= 0
            assert links.bandwidth[a][b] == math.inf if a == b else 0 < links.bandwidth[a][b] < math.inf
    assert links.latency[0][1] == links.latency[1][2]  # one pair of devices is measured once


def test_they_serve_a_prediction_and_a_pipeline():
    links = pp.measure_links(["cpu", "cpu"], repeats=1)
    held = pp.StageBytes((0, 0), (0, 0), (1e9, 1e9))
    one = pp.schedule("1f1b", num_ranks=2, num_microbatches=4)
    free, linked = (
        pp.simulate(one, pp.Costs((1, 1), (1, 1), (1, 1), bytes=held, links=x)).makespan
        for x in (Links(), links)
    )
    assert linked > free
    assert Links.from_dict(links.to_dict()) == links


@pytest.mark.parametrize(
    ("small", "large", "latency", "bandwidth"),
    [
        (1e-5 + SMALL / 1e9, 1e-5 + LARGE / 1e9, 1e-5, 1e9),
        (
            SMALL / 2e9,
            LARGE / 1e9,
            0.0,
            (LARGE - SMALL) / (LARGE / 1e9 - SMALL / 2e9),
        ),  # small copies stay in the cache
        (2e-3, 1e-3, 1e-3, LARGE / 1e-3),  # noise
        (0.0, 0.0, 0.0, LARGE / 1e-9),  # a clock too coarse
    ],
)
def test_two_sizes_give_a_line_that_no_noise_makes_negative(small, large, latency, bandwidth):
    found = line_through(small, large)
    assert found == (pytest.approx(latency, abs=1e-15), pytest.approx(bandwidth))


def test_the_time_is_the_median_after_one_copy_to_warm_up(monkeypatch):
    times = iter([100.0, 3.0, 1.0, 2.0])
    monkeypatch.setattr(measuring, "_seconds_by_host", lambda *_: next(times))
    assert measuring._copy_seconds("cpu", "cpu", 8, 3) == 2.0


def test_gpus_without_access_to_each_other_are_noted_once(monkeypatch):
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: {a, b} != {0, 2})
    (note,) = measuring._without_peer_access(["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cpu"])
    assert note == "no peer access, so copies go through the host: cuda:0 and cuda:2"
    assert measuring._without_peer_access(["cuda:0", "cuda:1", "cpu"]) == ()


@pytest.mark.parametrize(
    ("devices", "options", "sentence"),
    [
        ("cpu", {}, "devices is 'cpu'; it must be a list"),
        ([], {}, "it must be a list with one device a rank"),
        (pp.virtual(2), {}, "it must be a list"),
        (["cpu", "cuda:99"], {}, "no device 'cuda:99'"),
        (["cpu", "cpu"], {"repeats": 0}, "repeats is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(devices, options, sentence):
    with pytest.raises(pp.PipelabError, match=sentence):
        pp.measure_links(devices, **options)


@pytest.mark.gpu
def test_copies_from_and_to_a_gpu_are_timed_by_its_events():
    links = pp.measure_links(["cpu", "cuda:0", "cuda:0"])
    assert 0 < links.bandwidth[0][1] < math.inf and 0 < links.bandwidth[1][0] < math.inf
    assert links.latency[1][2] == 0 and links.bandwidth[1][2] == math.inf  # one GPU: no copy
    assert links.latency[0][1] == links.latency[0][2]


@pytest.mark.gpu
def test_two_gpus_have_a_link_each_way():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device: two are needed")
    links = pp.measure_links(["cuda:0", "cuda:1"])
    assert 0 < links.bandwidth[0][1] < math.inf and 0 < links.bandwidth[1][0] < math.inf
    assert bool(links.notes) != torch.cuda.can_device_access_peer(0, 1)
