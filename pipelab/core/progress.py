"""Progress of what may take long, shown the way the caller asks for."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Bar", "Progress"]

Progress = bool | Callable[[int, int], None]
"""True shows a bar; a function is called with how many parts are done and how many there are."""


class Bar:
    """Counts parts that are done. With True, a bar appears for what takes over a second, and is gone at the end.

    Example:
        >>> with Bar(2, lambda done, total: print(done, "of", total), "sweep") as bar:
        ...     bar.advance()
        1 of 2
    """

    def __init__(self, total: int, progress: Progress, name: str) -> None:
        """Begin at none.

        Args:
            total: how many parts there are.
            progress: how to show them.
            name: what is under way.
        """
        self._total, self._done = total, 0
        self._report = progress if callable(progress) else None
        self._bar = None
        if progress is True:  # even a disabled bar would start a thread of tqdm's
            from tqdm.auto import tqdm  # core loads no front end before one is wanted

            self._bar = tqdm(total=total, desc=name, delay=1, leave=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """One more part is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        if self._report is not None:
            self._report(self._done, self._total)
