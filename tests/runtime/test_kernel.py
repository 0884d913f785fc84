"""In a real Jupyter kernel: the stop button ends a step, and the notebook lives on."""

import time

import pytest
from jupyter_client.manager import start_new_kernel

SETUP = """
import time, torch, pipelab as pp
class Slow(torch.nn.Linear):
    def forward(self, x):
        time.sleep(0.05)
        return super().forward(x)
torch.manual_seed(0)
model = torch.nn.Sequential(*(Slow(4, 4) for _ in range(4)))
x, y = torch.randn(64, 4), torch.randn(64, 4)
schedule = pp.schedule("1f1b", num_ranks=2, num_microbatches=64)
pipe = pp.Pipeline(model, pp.Split(["2"]), schedule, loss_fn=torch.nn.functional.mse_loss, devices={devices})
"""


@pytest.fixture
def kernel():
    manager, client = start_new_kernel(kernel_name="python3")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def run(client, code, timeout=60):
    reply = client.execute_interactive(code, timeout=timeout, output_hook=lambda message: None)
    return reply["content"]


@pytest.mark.parametrize("devices", ['["cpu", "cpu"]', "pp.virtual(2)"], ids=["threads", "virtual"])
def test_the_stop_button_ends_a_step_and_the_next_one_is_right(kernel, devices):
    manager, client = kernel
    assert run(client, SETUP.replace("{devices}", devices))["status"] == "ok"
    client.execute("pipe.step(x, y)")
    time.sleep(1.0)
    manager.interrupt_kernel()
    begin = time.monotonic()
    reply = client.get_shell_msg(timeout=30)
    assert time.monotonic() - begin < 3
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert run(client, "assert all(p.grad is None for p in model.parameters())")["status"] == "ok"
    assert run(client, "Slow.forward = torch.nn.Linear.forward")["status"] == "ok"
    assert run(client, "assert pp.check_gradients(pipe, x, y)")["status"] == "ok"
