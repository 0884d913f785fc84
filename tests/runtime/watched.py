"""Hears of every action that a pipeline really runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from pipelab.core.actions import Action, Kind
from pipelab.runtime import pipeline
from pipelab.runtime.engine import METHODS
from pipelab.runtime.stages import SuspendedStages

Told = Callable[[SuspendedStages, Action], None]


@contextlib.contextmanager
def actions_told(told: Told) -> Iterator[None]:
    """Inside, `told` is called with the step's stages and the action when one has run, in its rank's thread."""

    def telling(kind: Kind, method: str) -> Any:
        def run(self: SuspendedStages, stage: int, microbatch: int) -> None:
            getattr(SuspendedStages, method)(self, stage, microbatch)
            told(self, Action(kind, stage, microbatch))

        return run

    methods = {
        method: telling(kind, method)
        for kind, (method, _) in METHODS.items()
        if hasattr(SuspendedStages, method)
    }
    with mock.patch.object(pipeline, "SuspendedStages", type("Told", (SuspendedStages,), methods)):
        yield
