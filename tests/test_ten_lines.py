"""A model of transformers, two cut points, 1F1B: the ten lines of the README."""

import itertools
import os
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()

TEN_LINES = """\
import torch, transformers, pipelab as pp

model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=6, n_embd=64, n_head=4, vocab_size=128))
ids = torch.arange(32).repeat(16, 1)  # sixteen sequences of token ids
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = pp.schedule("1f1b", num_ranks=3, num_microbatches=8)
with pp.Pipeline(model, pp.Split(["transformer.h.2", "transformer.h.4"]), schedule) as pipe:
    for _ in range(5):
        print(pipe.step({"input_ids": ids, "labels": ids}).loss)
        optimizer.step()
        optimizer.zero_grad()
"""


def test_they_are_ten_lines_and_those_of_the_readme():
    assert sum(bool(line.strip()) for line in TEN_LINES.splitlines()) <= 10
    shown = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "transformers" in block
    ]
    assert shown == [TEN_LINES]


@pytest.mark.filterwarnings("ignore::UserWarning:__main__")
def test_they_train_a_model_of_transformers(capsys):
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("transformers").set_seed(0)
    exec(compile(TEN_LINES, "<README>", "exec"), {})
    losses = [float(number) for number in re.findall(r"tensor\(([0-9.]+)\)", capsys.readouterr().out)]
    assert len(losses) == 5 and losses[-1] < losses[0] - 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
