"""torch.distributed.pipelining, reached in this one module: much of what is used here is private and may change.

Run as a program it is a launcher: it imports torch once and forks one process for each rank of each job.

    python torch_pipelining.py FOLDER

reads FOLDER/jobs.json, a list of jobs (see `Job`), and leaves FOLDER/results.json: for each job and rank its
gradients, or why it failed. A rank that fails or hangs takes down its own job and no other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

WIDTH = 4
LIMIT = 20.0
"""Seconds after which a job is given up."""


@dataclass(frozen=True)
class Job:
    """One table to be run.

    Attributes:
        table: the text of a compute-only CSV.
        ranks: the rank of each stage.
        num_microbatches: m.
        profile: whether each rank leaves a torch.profiler trace of two steps, `NUMBER.RANK.json`, and no gradients.
        width: of the layers; each of them takes about `width ** 2` multiplications a sample.
    """

    table: str
    ranks: Sequence[int]
    num_microbatches: int
    profile: bool = False
    width: int = WIDTH


def run(jobs: Sequence[Job], folder: Path) -> list[list[dict[str, list[float]] | str]]:
    """Run every job, each on as many gloo processes as it has ranks.

    Returns:
        For each job and each rank the gradients by the names of the parameters, or a sentence on what failed.
    """
    folder.mkdir(exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "results.json").read_text())


def model(num_stages: int, width: int = WIDTH) -> nn.Sequential:
    """The same small model in every process: one stage is one entry."""
    torch.manual_seed(num_stages)
    stages = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(num_stages)]
    return nn.Sequential(*stages).double()


def batch(num_microbatches: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples a micro-batch, and their targets."""
    generator = torch.Generator().manual_seed(7)
    shape = (2 * num_microbatches, width)
    return tuple(torch.randn(shape, dtype=torch.double, generator=generator) for _ in range(2))


def whole_gradients(job: Job) -> dict[str, list[float]]:
    """What one plain step of the uncut model gives."""
    whole, (inputs, target) = model(len(job.ranks), job.width), batch(job.num_microbatches, job.width)
    nn.functional.mse_loss(whole(inputs), target).backward()
    return _gradients(whole)


def draw(table: str, path: Path) -> None:
    """Let torch write a table as a Chrome trace: each cell one microsecond, at its place in the row."""
    from torch.distributed.pipelining.schedules import _Action, _dump_chrometrace

    rows = enumerate(table.splitlines())
    _dump_chrometrace({rank: [_Action.from_str(cell) for cell in row.split(",")] for rank, row in rows}, path)


def write_own_table(name: str, num_ranks: int, num_microbatches: int, path: Path) -> None:
    """Let torch write the table of one of its own schedules of two stages a rank; no process group is needed."""
    from torch.distributed.pipelining.schedules import get_schedule_class

    about = {"group_rank": 0, "group_size": num_ranks, "num_stages": 2 * num_ranks, "has_backward": True}
    about |= {"is_first": False, "is_last": False, "submod": None, "device": "cpu"}
    stages = [SimpleNamespace(**about, stage_index=index) for index in (0, 1)]
    get_schedule_class(name)(stages, num_microbatches)._dump_csv(path, format="compute_only")


def _gradients(module: nn.Module) -> dict[str, list[float]]:
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    return {name: grad.flatten().tolist() for name, grad in found.items() if grad is not None}


def _run_rank(job: Job, rank: int, folder: Path, number: int) -> dict[str, list[float]]:
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

    world = max(job.ranks) + 1
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/{number}.store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=LIMIT / 2),
    )
    whole, (inputs, target) = model(len(job.ranks), job.width), batch(job.num_microbatches, job.width)
    held = [s for s, holder in enumerate(job.ranks) if holder == rank]
    stages = [PipelineStage(whole[s], s, len(job.ranks), torch.device("cpu")) for s in held]
    runtime = _PipelineScheduleRuntime(stages, job.num_microbatches, loss_fn=nn.functional.mse_loss)
    path = folder / f"{number}.{rank}.csv"
    path.write_bytes(job.table.encode())
    runtime._load_csv(str(path), format="compute_only")
    written = folder / f"{number}.{rank}.written.csv"
    runtime._dump_csv(str(written), format="compute_only")
    assert written.read_bytes() == path.read_bytes(), "torch writes another table than it read"

    def step() -> None:
        for s in held:
            whole[s].zero_grad()
        runtime.step(*([inputs] if 0 in held else []), target=target)

    if job.profile:
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            dist.barrier()
            step()
            dist.barrier()
            step()
        profiler.export_chrome_trace(str(folder / f"{number}.{rank}.json"))
        found = {}
    else:
        step()
        found = {f"{s}.{name}": grad for s in held for name, grad in _gradients(whole[s]).items()}
    dist.barrier()
    dist.destroy_process_group()
    return found


def _child(job: Job, rank: int, folder: Path, number: int) -> None:
    try:
        result: object = _run_rank(job, rank, folder, number)
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"[:2000]
        traceback.print_exc(file=sys.stderr)
    unfinished = folder / f"{number}.{rank}.part"
    unfinished.write_text(json.dumps(result))
    unfinished.rename(folder / f"{number}.{rank}.result")


def _run_job(job: Job, folder: Path, number: int) -> list[object]:
    """Fork the ranks; when one has failed or time is up, end the rest."""
    children: dict[int, int] = {}
    for rank in range(max(job.ranks) + 1):
        child = os.fork()
        if not child:
            _child(job, rank, folder, number)
            os._exit(0)
        children[rank] = child
    results = [folder / f"{number}.{rank}.result" for rank in children]
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and not all(path.exists() for path in results):
        if any(path.exists() and path.read_text().startswith('"') for path in results):
            time.sleep(0.3)
            break
        time.sleep(0.005)
    for child in children.values():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return [json.loads(path.read_text()) if path.exists() else "did not end" for path in results]


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Path(sys.argv[1])
    todo = [Job(**entry) for entry in json.loads((here / "jobs.json").read_text())]
    import torch.distributed.pipelining.schedules  # before the fork, once for all

    found = [_run_job(job, here, number) for number, job in enumerate(todo)]
    (here / "results.json").write_text(json.dumps(found))
