"""Which dimension of a tensor is the batch: in the inputs, in the target, in the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipelab.errors import PipelabError


@dataclass(frozen=True)
class BatchDims:
    """The dimension that is the batch; negative ones count from the last, as in torch.

    Attributes:
        inputs: of every tensor in the inputs.
        target: of every tensor in the target, and of losses and weights with more numbers than one a sample.
        outputs: of the tensors that the model returns. Where one negative number is given for all, and an output has
            other dimensions than the inputs, the batch may also be where it is in the inputs.
    """

    inputs: int = 0
    target: int = 0
    outputs: int = 0

    @classmethod
    def of(cls, batch_dim: Any) -> BatchDims:
        """From what a person passes: one number for all, or (inputs, target, outputs).

        Raises:
            TypeError: it is no whole number.
            PipelabError: it is a tuple of another length.
        """
        given = batch_dim if isinstance(batch_dim, tuple) else (batch_dim,) * 3
        if not all(isinstance(dim, int) and not isinstance(dim, bool) for dim in given):
            raise TypeError(
                f"batch_dim must be a whole number, or a tuple of three (inputs, target, outputs), not {batch_dim!r}."
            )
        if len(given) != 3:
            raise PipelabError(
                f"batch_dim is {batch_dim!r}; as a tuple it has three numbers: (inputs, target, outputs)."
            )
        return cls(*given)


FIRST = BatchDims()


def has_dim(tensor: Tensor, dim: int) -> bool:
    return -tensor.dim() <= dim < tensor.dim()
