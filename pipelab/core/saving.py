"""What values that are kept in files share: they save themselves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pipelab.core.interchange.json_files import Value

__all__ = ["Saved"]


class Saved:
    """A value that `pp.load` reads back: a schedule, a split, costs, a profile, a plan or a trace."""

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the value as strict JSON, atomically; `pp.load` reads it.

        Args:
            path: where to.
            overwrite: replace a file that is there.

        Raises:
            PipelabError: the file exists and `overwrite` is False, or it is longer than `load` would read.
        """
        from pipelab.core.interchange import json_files  # files are about values, and import them

        json_files.save(cast("Value", self), path, overwrite)
