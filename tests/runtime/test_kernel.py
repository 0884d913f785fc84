"""In a real Jupyter kernel: the stop button ends whatever runs, and the notebook lives on."""

import time

import pytest
from jupyter_client.manager import start_new_kernel

SETUP = """
import pathlib, signal, threading, time, torch, pipelab as pp

marker, place = pathlib.Path({marker!r}), ""

def reach(name):
    '''Here the button is pressed: a call that takes a while has begun.'''
    if name == place:
        marker.touch()
        time.sleep(0.3)

class Slow(torch.nn.Linear):
    def forward(self, x):
        reach("forward")
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: reach("backward"))
        return y

def loss_fn(output, target):
    reach("loss")
    return torch.nn.functional.mse_loss(output, target)

torch.manual_seed(0)
model = torch.nn.Sequential(*(Slow(4, 4) for _ in range(4))).double()
x, y = torch.randn(64, 4).double(), torch.randn(64, 4).double()
pipes = {{}}
for name, stages_per_rank, cuts in [("1f1b", 1, ["2"]), ("zb-v", 2, ["1", "2", "3"])]:
    schedule = pp.schedule(name, num_ranks=2, num_microbatches=32, stages_per_rank=stages_per_rank)
    for devices in (["cpu", "cpu"], pp.virtual(2)):
        pipes[name, isinstance(devices, list)] = pp.Pipeline(
            model, pp.Split(cuts), schedule, loss_fn=loss_fn, devices=devices)
"""

RIGHT = """
place = ""
assert all(p.grad is None for p in model.parameters())
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
for pipe in pipes.values():
    assert pp.check_gradients(pipe, x, y)
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    manager, client = start_new_kernel(kernel_name="python3")
    book = Notebook(manager, client, tmp_path_factory.mktemp("kernel") / "marker")
    book.run(SETUP.format(marker=str(book.marker)))
    yield book
    client.stop_channels()
    manager.shutdown_kernel(now=True)


class Notebook:
    """Runs cells, and presses the stop button in the middle of one."""

    def __init__(self, manager, client, marker):
        self.manager, self.client, self.marker = manager, client, marker

    def run(self, code):
        content = self.client.execute_interactive(code, timeout=60, output_hook=lambda message: None)[
            "content"
        ]
        assert content["status"] == "ok", "\n".join(content["traceback"])

    def interrupted(self, code, place, times=1):
        """The name of the error of a cell that is interrupted once a slow call has begun; and that it ended soon."""
        self.marker.unlink(missing_ok=True)
        # Else the kernel would give up what is sent while it is still busy with the error.
        self.client.execute(f"place = {place!r}\n{code}", stop_on_error=False)
        deadline = time.monotonic() + 30
        while not self.marker.exists():
            assert time.monotonic() < deadline, "the cell never came there"
            time.sleep(0.005)
        for _ in range(times):
            self.manager.interrupt_kernel()
            time.sleep(0.01)
        begin = time.monotonic()
        reply = self.client.get_shell_msg(timeout=30)
        assert time.monotonic() - begin < 3
        return reply["content"]["ename"]


@pytest.mark.parametrize("threads", [True, False], ids=["threads", "virtual"])
@pytest.mark.parametrize("name", ["1f1b", "zb-v"])
@pytest.mark.parametrize("place", ["forward", "backward", "loss"])
def test_the_stop_button_ends_a_step_and_the_next_one_is_right(notebook, place, name, threads):
    assert notebook.interrupted(f"pipes[{name!r}, {threads}].step(x, y)", place) == "KeyboardInterrupt"
    notebook.run(RIGHT)


def test_the_button_pressed_ten_times_is_one_interrupt(notebook):
    assert notebook.interrupted("pipes['1f1b', True].step(x, y)", "forward", times=10) == "KeyboardInterrupt"
    notebook.run(RIGHT)


def test_the_stop_button_ends_a_profile_and_an_evaluation(notebook):
    cell = "pp.profile(model, x[:2], y[:2], loss_fn=loss_fn, repeats=9, progress=False)"
    for place in ("forward", "backward"):
        assert notebook.interrupted(cell, place) == "KeyboardInterrupt"
        notebook.run(RIGHT)
    assert notebook.interrupted("pipes['1f1b', True].forward(x)", "forward") == "KeyboardInterrupt"
    notebook.run(RIGHT)


@pytest.mark.parametrize("error", ["SystemExit", "GeneratorExit", "KeyboardInterrupt", "ZeroDivisionError"])
def test_an_error_in_a_step_is_told_in_its_cell_and_the_kernel_lives(notebook, error):
    code = (
        f"def failing(output, target): raise {error}()\nlate, loss_of_pipe = pipes['1f1b', True], loss_fn\n"
    )
    notebook.run(code)
    notebook.run(
        "late.loss_fn = failing\n"
        f"try: late.step(x, y)\nexcept {error} as caught: notes = caught.__notes__\n"
        "else: raise AssertionError('it was swallowed')\n"
        "finally: late.loss_fn = loss_of_pipe\n"
        "assert 'raised in action 1F0' in notes[0]"
    )
    notebook.run(RIGHT)
