"""The Lab in a real kernel: the notebook's stop button, and what is left of many re-runs of a cell."""

from __future__ import annotations

import time

import pytest

manager = pytest.importorskip("jupyter_client.manager")

LIMIT = 60.0

SETUP = """
import time, torch, pipelab as pp
from pipelab.core.profile import Affine

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 1)
        self.pause = 0.1
    def forward(self, x):
        time.sleep(self.pause)
        return self.b(self.a(x))

cost = (Affine(0.05), Affine(0.05))
profile = pp.Profile(("a", "b"), cost, cost, cost, (1, 1), cost, cost, 1, (1, 2), "cpu")
model, x, y = Slow(), torch.randn(8, 8), torch.randn(8, 1)
def make():
    return pp.Lab(model, x, y, loss_fn=torch.nn.functional.mse_loss, profile=profile, devices=pp.virtual(2))
"""


@pytest.fixture(scope="module")
def kernel():
    km, client = manager.start_new_kernel(kernel_name="python3", startup_timeout=LIMIT)
    yield km, client
    client.stop_channels()
    km.shutdown_kernel(now=True)


def run(client, code: str) -> str:
    """What the code prints, or the name of the error it ends with."""
    said: list[str] = []

    def hear(message) -> None:
        content = message["content"]
        said.append(
            {"stream": content.get("text", ""), "error": content.get("ename", "")}.get(
                message["msg_type"], ""
            )
        )

    client.execute_interactive(code, output_hook=hear, timeout=LIMIT)
    return "".join(said).strip()


def test_the_notebooks_stop_button_interrupts_a_run_in_a_cell(kernel):
    km, client = kernel
    assert run(client, SETUP + "lab = make()") == ""
    request = client.execute("lab.run()")
    while client.get_iopub_msg(timeout=LIMIT)["msg_type"] != "execute_input":
        pass
    time.sleep(1.0)
    begin = time.monotonic()
    km.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=LIMIT))["parent_header"]["msg_id"] != request:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert time.monotonic() - begin < 3.0
    state = "lab.measured, lab.running, all(p.grad is None for p in model.parameters())"
    assert run(client, f"print({state})") == "None False True"
    assert run(client, "model.pause = 0; print(lab.run().num_ranks)") == "2"


COUNTED = """
import gc, threading, matplotlib.pyplot as plt; from ipywidgets.widgets import widget
gc.collect(); print(len(widget._instances), len(plt.get_fignums()), threading.active_count())
"""


@pytest.mark.parametrize(
    "cell",
    [
        "lab = make(); lab.view = 'both'; lab.pin(); lab",  # what it replaces is closed
        "make()",
        "import ipywidgets as W; W.VBox([W.Label('mine'), make()])",
        "lab = make(); lab.num_microbatches = 4; lab.close()",
    ],
)
def test_a_cell_run_fifty_times_leaves_nothing_behind(kernel, cell):
    _, client = kernel
    run(client, SETUP)
    run(client, cell)
    run(client, cell)
    before = run(client, COUNTED)
    for _ in range(50):
        run(client, cell)
    assert run(client, COUNTED) == before


def test_what_a_variable_holds_is_not_closed(kernel):
    _, client = kernel
    run(client, SETUP)
    for name in ("first", "second"):
        run(client, f"{name} = current = make()")
        run(client, "current")
    assert run(client, "print(first.comm is None, second.comm is None)") == "False False"
    run(client, "first.close(); second.close()")
