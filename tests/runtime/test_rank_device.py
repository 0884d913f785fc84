"""How ranks order their work on GPUs, seen without one: what they ask torch for is written down."""

import contextlib
import os
import sys
from types import SimpleNamespace

import pytest
import torch

import pipelab as pp
from pipelab.runtime.devices import cores_of_ranks
from pipelab.runtime.rank_device import CopyStreams, EventTimed, HostTimed, rank_devices


class Stream:
    def __init__(self, device):
        self.device, self.log = torch.device(device), []

    def wait_event(self, event):
        self.log.append(("wait", event))

    def wait_stream(self, other):
        self.log.append(("wait stream", other))

    def synchronize(self):
        self.log.append("synchronize")


class Event:
    def __init__(self, enable_timing=False):
        self.stream, self.timing = None, enable_timing

    def record(self, stream):
        self.stream = stream

    def elapsed_time(self, other):
        return 250.0  # milliseconds


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    """torch.cuda as far as ranks use it, for one thread."""
    current, asked = {}, []

    @contextlib.contextmanager
    def stream_context(stream):
        before = current.get(stream.device)
        current[stream.device] = stream
        yield
        current[stream.device] = before

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.update({stream.device: stream}))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[torch.device(device)])
    monkeypatch.setattr(torch.cuda, "stream", stream_context)
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    return SimpleNamespace(current=current, synchronized=asked)


def stream_of(rank, gpus, microbatch):
    rank.activate(microbatch)
    return gpus.current[rank.device]


def test_a_rank_alone_on_its_gpu_has_one_stream(gpus):
    first, second = rank_devices(["cuda:0", "cuda:1"])
    assert stream_of(first, gpus, 0) is stream_of(first, gpus, 5)
    assert stream_of(second, gpus, 0).device == torch.device("cuda:1")


def test_on_a_gpu_that_ranks_share_each_micro_batch_stays_on_its_stream(gpus):
    ranks = rank_devices(["cuda:0", "cuda:0", "cpu", "cuda:0"])
    on_gpu = [rank for rank in ranks if isinstance(rank, EventTimed)]
    assert isinstance(ranks[2], HostTimed) and len(on_gpu) == 3
    found = [[stream_of(rank, gpus, i) for i in range(6)] for rank in on_gpu]
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3 and found[0][:3] == found[0][3:]


def test_with_one_stream_nothing_runs_at_the_same_time(gpus):
    ranks = rank_devices(["cuda:0"] * 3, one_stream=True)
    assert len({stream_of(rank, gpus, i) for rank in ranks for i in range(4)}) == 1


def test_a_ranks_next_action_waits_for_its_last_one_and_not_for_that_of_others(gpus):
    first, second = rank_devices(["cuda:0", "cuda:0"])
    first.activate(0)
    end_of_first = first.mark()
    second.activate(1)
    end_of_second = second.mark()
    other = stream_of(first, gpus, 1)
    assert ("wait", end_of_first) in other.log and ("wait", end_of_second) not in other.log
    assert end_of_first.stream is not other and end_of_second.stream is other


def test_events_of_other_ranks_are_waited_for_on_the_stream_that_is_active(gpus):
    (rank, _), foreign = rank_devices(["cuda:0", "cuda:0"]), Event()
    active = stream_of(rank, gpus, 1)
    rank.wait([foreign, 12.5])  # a CPU's mark is a time
    assert active.log == [("wait", foreign)]


def test_a_mark_has_the_hosts_time_of_the_step_and_what_passed_since(gpus):
    (rank,) = rank_devices(["cuda:0"])
    rank.begin_step()
    rank.activate()
    mark = rank.mark()
    assert mark.timing and rank.seconds(mark) == pytest.approx(rank._anchor_time + 0.25)
    assert gpus.synchronized == [torch.device("cuda:0")]


def test_a_step_does_not_wait_for_the_last_action_of_the_step_before(gpus):
    rank, _ = rank_devices(["cuda:0", "cuda:0"])
    rank.activate(0)
    rank.mark()
    rank.begin_step()
    assert stream_of(rank, gpus, 1).log == []


def test_all_streams_are_done_when_a_rank_has_finished(gpus):
    rank, _ = rank_devices(["cuda:0", "cuda:0"])
    streams = [stream_of(rank, gpus, i) for i in range(2)]
    rank.finish()
    assert all(stream.log[-1] == "synchronize" for stream in streams)


class Value:
    def __init__(self, device):
        self.device, self.recorded = torch.device(device), []

    def record_stream(self, stream):
        self.recorded.append(stream)


def test_a_copy_off_a_gpu_has_a_stream_of_its_own_behind_the_receivers(gpus):
    sender, receiver = rank_devices(["cuda:0", "cuda:1"])
    computing, receiving = stream_of(sender, gpus, 0), stream_of(receiver, gpus, 0)
    copies, value = CopyStreams(), Value("cuda:0")
    with copies.copying(value, receiver.device):
        stream = gpus.current[sender.device]
        assert stream is not computing and stream.log == [("wait stream", receiving)]
    assert gpus.current[sender.device] is computing and value.recorded == [stream]
    with copies.copying(Value("cuda:0"), receiver.device):
        assert gpus.current[sender.device] is stream  # each pair keeps its stream
    with copies.copying(Value("cuda:1"), sender.device):
        assert gpus.current[receiver.device] not in (stream, receiving)


def test_a_copy_to_the_cpu_needs_no_receivers_stream(gpus):
    value = Value("cuda:0")
    stream_of(rank_devices(["cuda:0"])[0], gpus, 0)
    with CopyStreams().copying(value, torch.device("cpu")):
        assert gpus.current[torch.device("cuda:0")].log == []
    assert len(value.recorded) == 1


@pytest.mark.parametrize(("source", "target"), [("cpu", "cuda:0"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_other_values_are_copied_where_they_are(gpus, source, target):
    value = Value(source)
    with CopyStreams().copying(value, torch.device(target)):
        assert gpus.current == {} and value.recorded == []


def test_marks_of_the_host_are_its_clock():
    (rank,) = rank_devices(["cpu"])
    early, late = rank.mark(), rank.mark()
    assert rank.seconds(early) <= rank.seconds(late)
    rank.activate(3)
    rank.wait([early])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says on which cores a thread runs")
def test_a_thread_keeps_to_the_cores_of_the_rank_it_works_for_and_gets_its_own_back():
    before = os.sched_getaffinity(0)
    core = frozenset([max(before)])
    (rank,) = rank_devices(["cpu"], cores=[core])
    with rank.active():
        assert os.sched_getaffinity(0) == core
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says on which cores a thread runs")
def test_each_stage_runs_on_its_ranks_cores_and_the_callers_thread_where_it_did():
    class Where(torch.nn.Linear):
        def forward(self, x):
            seen.append(os.sched_getaffinity(0))
            return super().forward(x)

    before, seen = os.sched_getaffinity(0), []
    model = torch.nn.Sequential(*[Where(4, 4) for _ in range(4)])
    schedule = pp.schedule("interleaved-1f1b", num_ranks=2, num_microbatches=4, stages_per_rank=2)
    with pp.Pipeline(model, pp.Split(["1", "2", "3"]), schedule, devices=["cpu", "cpu"]) as pipe:
        pipe.forward(torch.ones(4, 4))
        seen.clear()
        pipe.forward(torch.ones(4, 4))
    shares = [share or before for share in cores_of_ranks(("cpu", "cpu"))]
    assert sorted(map(sorted, seen)) == sorted(
        sorted(shares[stage % 2]) for stage in range(4) for _ in range(4)
    )
    assert os.sched_getaffinity(0) == before
