"""glibc's allocator, told to keep memory: in processes of their own, for what it changes cannot be changed back."""

import json
import subprocess
import sys

import pytest

import pipelab as pp
from pipelab.runtime import allocator
from pipelab.runtime.allocator import AllocatorTuning

COUNT_FAULTS = """
import ctypes, json, resource, sys
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes, library.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [library.malloc(2**23) for _ in range(8)]
        for block in blocks:
            library.memset(block, 1, 2**23)
        for block in blocks:
            library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
from pipelab.runtime.allocator import tune_allocator
first, second = tune_allocator(), tune_allocator()
faults()
print(json.dumps([before, faults(), first.settings, second == first, "torch" in sys.modules]))
"""

on_glibc = pytest.mark.skipif(bool(allocator._why_not()), reason=f"not tunable here: {allocator._why_not()}")


def run(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@on_glibc
def test_blocks_that_come_again_cost_no_page_faults_any_more():
    before, after, settings, same, torch_loaded = run(COUNT_FAULTS)
    assert before > 10_000 and after < before / 100
    assert list(settings) == ["M_MMAP_THRESHOLD", "M_TRIM_THRESHOLD", "M_ARENA_MAX"]
    assert same and not torch_loaded


def test_importing_pipelab_sets_nothing():
    program = (
        "import ctypes, json; called = []\n"
        "from pipelab.runtime import allocator\n"
        "allocator.tune_allocator = lambda: called.append(1)\n"
        "import pipelab as pp; pp.Pipeline, pp.profile, pp.Lab\n"
        "print(json.dumps(called))"
    )
    assert run(program) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda patch: patch.setattr(allocator.sys, "platform", "darwin"), "this is darwin"),
        (lambda patch: patch.setattr(allocator.ctypes, "CDLL", lambda name: object()), "is not glibc"),
        (
            lambda patch: patch.setattr(allocator, "_file_of", lambda *_: "/usr/lib/libjemalloc.so.2"),
            "memory comes from another allocator: /usr/lib/libjemalloc.so.2",
        ),
    ],
)
def test_elsewhere_nothing_is_changed_and_it_says_why(monkeypatch, change, sentence):
    with monkeypatch.context() as patch:
        if "another" in sentence:
            patch.setattr(allocator.sys, "platform", "linux")
        change(patch)
        tuning = allocator.tune_allocator()
    assert not tuning and tuning.settings == {} and sentence in str(tuning)
    assert str(tuning).startswith("nothing was changed")


def test_what_glibc_refuses_is_named(monkeypatch):
    class Library:
        gnu_get_libc_version = None

        def __init__(self, _):
            pass

        def mallopt(self, number, value):
            return number != allocator.M_ARENA_MAX

    with monkeypatch.context() as patch:
        patch.setattr(allocator.ctypes, "CDLL", Library)
        patch.setattr(allocator, "_why_not", lambda: "")
        tuning = allocator.tune_allocator()
    assert tuning and "M_ARENA_MAX" not in tuning.settings
    assert str(tuning).endswith("(refused by glibc: M_ARENA_MAX)")


def test_what_was_set_is_printed():
    assert str(AllocatorTuning({"M_ARENA_MAX": 1})) == "glibc's allocator: M_ARENA_MAX = 1"
    assert pp.tune_allocator is allocator.tune_allocator
