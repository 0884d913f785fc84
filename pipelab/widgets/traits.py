"""The traits of the Lab that traitlets does not have."""

from __future__ import annotations

import traitlets as T

from pipelab.errors import PipelabError


class Choice(T.Any):
    """Any value that the setting takes; None is handed to it too, and refused there."""

    allow_none = False


class Refused(PipelabError, T.TraitError):
    """A refusal that traitlets understands too, so that held changes are rolled back."""
