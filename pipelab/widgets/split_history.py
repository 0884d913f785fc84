"""What undo goes back to: one step for each thing a hand did, however many positions it passed through."""

from __future__ import annotations

from pipelab.core.split import Split

_MOST = 500
"""Steps that are kept; nobody goes back further, and a notebook may run for days."""


class History:
    """Splits that were, and splits that were undone.

    Example:
        >>> history = History()
        >>> history.record(Split(["a"]), hand="one drag")
        >>> history.record(Split(["b"]), hand="one drag")
        >>> history.undo(Split(["c"])), history.undo(Split(["a"])), history.redo(Split(["a"]))
        (Split(['a']), None, Split(['c']))
    """

    def __init__(self) -> None:
        self._past: list[Split] = []
        self._future: list[Split] = []
        self._hand = ""

    @property
    def can_undo(self) -> bool:
        """Whether there is a split to go back to."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether something was undone."""
        return bool(self._future)

    def record(self, before: Split, hand: str = "") -> None:
        """Something has moved.

        Args:
            before: the split until then.
            hand: the name of a movement that goes on; all of it is one step. "" for a step of its own.
        """
        if not hand or hand != self._hand:
            self._past = [*self._past[1 - _MOST :], before]
        self._hand = hand
        self._future = []

    def rest(self, now: Split) -> None:
        """The hand has let go; where it ends where it began, nothing has happened."""
        if self._hand and self._past and self._past[-1] == now:
            self._past.pop()
        self._hand = ""

    def undo(self, now: Split) -> Split | None:
        """The split before `now`; None where there is none."""
        return self._go(self._past, self._future, now)

    def redo(self, now: Split) -> Split | None:
        """The split that was undone last; None where there is none."""
        return self._go(self._future, self._past, now)

    def _go(self, source: list[Split], target: list[Split], now: Split) -> Split | None:
        self._hand = ""
        if not source:
            return None
        target.append(now)
        return source.pop()
