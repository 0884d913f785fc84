"""Which devices a pipeline gets."""

import pytest
import torch

import pipelab as pp
from pipelab.core.plan import VirtualDevices
from pipelab.runtime import devices


def pretend(monkeypatch, gpus=0, cores=2, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(devices, "usable", lambda: frozenset(range(cores)))


@pytest.mark.parametrize(
    ("machine", "num_ranks", "expected"),
    [
        ({"gpus": 4}, 2, ("cuda:0", "cuda:1")),
        ({"gpus": 2}, 4, ("cuda:0", "cuda:0", "cuda:1", "cuda:1")),
        ({"gpus": 1}, 2, ("cuda:0", "cuda:0")),
        ({"cores": 2}, 2, ("cpu", "cpu")),
        ({"cores": 2}, 4, VirtualDevices(4)),
        ({"cores": 8, "mps": True}, 2, VirtualDevices(2, device="mps")),
    ],
)
def test_auto_takes_what_the_machine_has(monkeypatch, machine, num_ranks, expected):
    pretend(monkeypatch, **machine)
    assert devices.resolve("auto", num_ranks) == expected


def test_a_gpu_beyond_the_last_is_refused_with_the_number_there_is(monkeypatch):
    pretend(monkeypatch, gpus=1)
    with pytest.raises(pp.PipelabError, match=r"no device 'cuda:1': this machine has 1 GPU\."):
        devices.resolve(["cuda:0", "cuda:1"], 2)


def test_cores_are_shared_out_among_the_ranks_on_the_cpu(monkeypatch):
    pretend(monkeypatch, cores=8)
    assert devices.threads_per_rank(("cpu", "cpu")) == 4
    assert devices.threads_per_rank(("cpu",) * 16) == 1
    assert devices.threads_per_rank(VirtualDevices(4)) == 1


def test_a_clock_that_is_not_honest_says_why(monkeypatch):
    pretend(monkeypatch, cores=2)
    assert devices.clock_notes(("cpu", "cpu")) == () == devices.clock_notes(VirtualDevices(8))
    assert "3 ranks share 2 CPU cores" in devices.clock_notes(("cpu",) * 3)[0]
    assert "2 ranks share 1 GPUs" in devices.clock_notes(("cuda:0", "cuda:0"))[0]


def test_ranks_with_a_core_each_keep_to_it(monkeypatch):
    monkeypatch.setattr(devices, "usable", lambda: frozenset([6, 4, 1]))
    assert devices.cores_of_ranks(("cpu", "cpu", "cpu")) == ({1}, {4}, {6})
    assert devices.cores_of_ranks(("cpu", "cuda:0", "cpu")) == ({1, 6}, {1, 4, 6}, {4})


@pytest.mark.parametrize(
    ("cores", "names"),
    [
        (2, ("cpu",)),  # a rank alone
        (2, ("cpu",) * 3),  # more ranks than cores
        (4, ("cpu", "cpu")),  # operations with threads of their own, which would stay behind
        (2, ("cuda:0", "cuda:1")),
        (2, VirtualDevices(2)),
    ],
)
def test_other_ranks_run_wherever_the_system_puts_them(monkeypatch, cores, names):
    pretend(monkeypatch, cores=cores)
    assert set(devices.cores_of_ranks(names)) == {None}
