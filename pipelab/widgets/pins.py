"""The part of the Lab that compares: timelines kept beneath the one that the hand moves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import traitlets as T

from pipelab.core.trace import Trace
from pipelab.errors import PipelabError
from pipelab.widgets.controls import MOST_PINNED, Controls
from pipelab.widgets.exhibit import Exhibit
from pipelab.widgets.gallery import Gallery


class Pins(T.HasTraits):
    """Keeps up to four timelines for comparison.

    Attributes:
        pinned: their traces, each with a label of its own.
    """

    pinned = T.Any((), read_only=True)

    _lock: threading.RLock
    _controls: Controls
    _gallery: Gallery
    _exhibited: Callable[[], Exhibit]
    _explained: Callable[[], AbstractContextManager[None]]

    def pin(self) -> Trace:
        """Keep what the first timeline shows below, to compare others with it.

        Returns:
            The trace, which `pinned` now ends with; its label tells it from the others.

        Raises:
            PipelabError: as many as can be compared are pinned already.
        """
        with self._explained():
            if len(self.pinned) >= MOST_PINNED:
                raise PipelabError(
                    f"{MOST_PINNED} timelines are pinned; unpin one first, such as lab.unpin(0)."
                )
            trace = self._exhibited().traces[0]
            names = [one.label for one in self.pinned]
            name = trace.label
            number = 2
            while name in names:
                name, number = f"{trace.label} ({number})", number + 1
            trace = trace.with_label(name)
            self._pin((*self.pinned, trace))
        return trace

    def unpin(self, number: int | None = None) -> None:
        """Take a pinned timeline away.

        Args:
            number: its index in `pinned`; None takes all of them.

        Raises:
            PipelabError: there is none of that number.
        """
        with self._explained():
            if number is not None and not 0 <= number < len(self.pinned):
                raise PipelabError(
                    f"There is no pinned timeline {number}; there are {len(self.pinned)}, from 0."
                )
            self._pin(tuple(one for k, one in enumerate(self.pinned) if number not in (None, k)))

    def _pin(self, traces: tuple[Trace, ...]) -> None:
        with self._lock:
            self._gallery.show_pinned(traces)
            self._controls.show_pins(len(traces))
            self.set_trait("pinned", traces)
