"""The versions of one stage's weights, kept as long as a mini-batch in flight still needs them (weight stashing).

PipeDream, first stage of three: mini-batches 0 to 2 enter before the first update, each later one after one more

enters     0  1  2     3     4          the user's parameters are the newest version, always; an older one
updates             U0    U1    U2      is a copy, made before the update that makes it old and dropped after
works on   0  0  0     1     2          the update of the last mini-batch that works on it
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Stash:
    """The weights of one stage, the newest and those that are still needed.

    Args:
        parameters: the stage's, the user's own objects.
        uses: for each mini-batch the version that it works on.

    Attributes:
        newest: the number of updates made; the version that `parameters` hold.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], uses: Sequence[int]) -> None:
        self._parameters = parameters
        self._last = {version: minibatch for minibatch, version in enumerate(uses)}
        self._kept: dict[int, list[Tensor]] = {}
        self.newest = 0

    @property
    def kept(self) -> int:
        """How many versions there are now, the newest included."""
        return len(self._kept.keys() | {self.newest})

    def weights(self, version: int) -> list[Tensor]:
        """One tensor a parameter, which nothing changes until the mini-batches of this version have had their updates.

        Where no update comes in between these are views of the parameters themselves.
        """
        if version == self.newest and self._last[version] == version:
            return [parameter.detach() for parameter in self._parameters]
        if version not in self._kept:
            assert version == self.newest  # an older one that is still needed was kept
            self._kept[version] = [parameter.detach().clone() for parameter in self._parameters]
        return self._kept[version]

    def before_update(self, minibatch: int) -> None:
        """The parameters are about to be changed by the update of `minibatch`."""
        if self._last.get(self.newest, -1) > minibatch:
            self.weights(self.newest)

    def after_update(self, minibatch: int) -> None:
        """They have been: there is a version more, and those that only this mini-batch needed go."""
        self.newest += 1
        self._kept = {
            version: kept for version, kept in self._kept.items() if self._last[version] > minibatch
        }
