"""Dropout that does not depend on the schedule: a random state per (step, stage, micro-batch).

torch's default generators are global to the process. A stage that draws random numbers therefore seeds the generator
when its forward starts and keeps every other stage that draws out until it ends. Which stages draw is found by
comparing the generator's state around the forwards of one whole step, since an expert with dropout may get nothing of
the first micro-batch; so models without dropout pay nothing afterwards.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ENOUGH = 8
"""A stage that has drawn nothing in a whole step, or in so many forwards, is taken for one that never does."""

_SENTINEL = torch.Generator().manual_seed(0x51F1).get_state()  # where the generator is left between turns
_MOST_FLAGS = 16


@dataclass
class _Known:
    """What is known about the stages, with one setting of the train/eval flags.

    Attributes:
        drawing: the stages that have drawn.
        quiet: for other stages how many forwards were looked at.
    """

    drawing: set[int] = field(default_factory=set)
    quiet: dict[int, int] = field(default_factory=dict)


class Randomness:
    """The random states of one pipeline.

    Args:
        model: its train/eval flags are watched: when they change, every stage is looked at again.
        devices: the devices of the stages.
    """

    def __init__(self, model: nn.Module, devices: Iterable[torch.device]) -> None:
        self._model = model
        self._devices = sorted(set(devices), key=str)
        self._known = _Known()
        self._known_of: dict[tuple[bool, ...], _Known] = {}
        self._enough = ENOUGH
        self.lock = threading.Lock()  # held by whoever may draw
        self._seeded = self._strayed = False
        self._before: list[Tensor] = []
        self._left = torch.get_rng_state()
        self.seed = 0

    def watch(self, devices: Iterable[torch.device]) -> None:
        """Minds the generators of further devices, on which copies of the model run."""
        self._devices = sorted({*self._devices, *devices}, key=str)

    @property
    def drawing_stages(self) -> tuple[int, ...]:
        """The stages known to draw random numbers; their forwards run one at a time."""
        return tuple(sorted(self._known.drawing))

    def may_draw(self, stage: int) -> bool:
        """Whether a stage draws random numbers or is not known yet."""
        return stage in self._known.drawing or self._known.quiet.get(stage, 0) < self._enough

    @property
    def strayed(self) -> bool:
        """Whether a stage of this step drew random numbers though it never had before."""
        return self._strayed or not torch.equal(torch.get_rng_state(), self._left)

    def begin_step(self) -> None:
        """Takes the step's seed from torch's default generator, without moving that generator."""
        self._before = self._states()
        self.seed = _draw_seed(self._before[0])[0]
        self._seeded = self._strayed = False
        self._left = self._before[0]
        flags = tuple(module.training for module in self._model.modules())
        if flags not in self._known_of and len(self._known_of) == _MOST_FLAGS:
            self._known_of.clear()
        self._known = self._known_of.setdefault(flags, _Known())

    def end_step(self) -> None:
        """Puts the generators back; the default one moves on by one draw if any stage drew."""
        before = self._before
        if self.strayed:
            self._known.quiet.clear()
            self._enough *= ENOUGH
        if not self._seeded:
            return
        states = [_draw_seed(before[0])[1], *before[1:]] if self._known.drawing else before
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda_devices(), states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def note_whole_step(self) -> None:
        """All micro-batches of a step have come through: the stages that were looked at have shown what they do."""
        self._known.quiet = dict.fromkeys(self._known.quiet, self._enough)

    def enter(self, stage: int, microbatch: int, device: torch.device) -> Turn | None:
        """Called in the thread that is about to run the forward; it calls `leave` on what is returned."""
        if not self.may_draw(stage):
            return None
        self.lock.acquire()
        if not self.may_draw(stage):
            self.lock.release()
            return None
        # Outside turns nobody draws: if the generator is not where it was left, a stage drew that never did before.
        self._strayed = self._strayed or not torch.equal(torch.get_rng_state(), self._left)
        self._seeded = True
        seed_generators(self.seed, stage, microbatch, device)
        return Turn(self, stage, None if stage in self._known.drawing else self._states())

    def _leave(self, turn: Turn, ended: bool) -> None:
        known, stage = self._known, turn.stage
        if turn.before is not None and not all(map(torch.equal, turn.before, self._states())):
            known.drawing.add(stage)
            known.quiet.pop(stage, None)
        elif turn.before is not None and ended:  # one that was given up may not have come to its dropout
            known.quiet[stage] = known.quiet.get(stage, 0) + 1
        torch.set_rng_state(_SENTINEL)
        self._left = _SENTINEL
        self.lock.release()

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda_devices())]

    def _cuda_devices(self) -> list[torch.device]:
        return [device for device in self._devices if device.type == "cuda"]


class Turn:
    """One forward's turn at the generators.

    Attributes:
        stage: the stage that has the turn.
        before: the generators' states when the turn began, if it is not known yet whether the stage draws.
    """

    def __init__(self, owner: Randomness, stage: int, before: list[Tensor] | None) -> None:
        self._owner = owner
        self.stage = stage
        self.before = before

    def leave(self, ended: bool = True) -> None:
        """Ends the turn.

        Args:
            ended: whether the forward came to the end of its stage.
        """
        self._owner._leave(self, ended)


def seed_generators(seed: int, stage: int, microbatch: int, device: torch.device) -> None:
    """Puts the default generators into the state that belongs to (seed, stage, micro-batch)."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{microbatch}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "little") >> 1
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(value)


def _draw_seed(state: Tensor) -> tuple[int, Tensor]:
    generator = torch.Generator()
    generator.set_state(state)
    seed = int(torch.randint(2**62, (1,), generator=generator, device="cpu"))
    return seed, generator.get_state()
