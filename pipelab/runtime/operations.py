"""The operations whose weight gradient can be computed apart from the input's: their formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

linear, addmm = F.linear, torch.addmm
convolutions = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}


class Operation(Protocol):
    """The four formulas of an operation on an input x, a weight and a bias; `gy` is the gradient of its output."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...

    def input_gradient(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor: ...

    def weight_gradient(
        self, gy: Tensor, x: Tensor, weight: Tensor, with_bias: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The weight's gradient, and with it the bias's, if that is wanted: some operations make both at once."""

    def bias_gradient(self, gy: Tensor) -> Tensor: ...

    def add_weight_gradient(self, gradient: Tensor, gy: Tensor, x: Tensor) -> bool:
        """Adds to `gradient` in one go where the operation can; says whether it did."""


def _rows(value: Tensor) -> Tensor:
    """A matrix with the last dimension as it is."""
    if value.dim() == 2:
        return value
    return value.flatten(0, -2) if value.dim() > 2 else value.unsqueeze(0)


class Linear:
    """y = x weight^T + bias, over the last dimension of x."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    def input_gradient(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return _rows(gy).mm(weight).view(x.shape)

    def weight_gradient(
        self, gy: Tensor, x: Tensor, weight: Tensor, with_bias: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        return _rows(gy).t().mm(_rows(x)), self.bias_gradient(gy) if with_bias else None

    def bias_gradient(self, gy: Tensor) -> Tensor:
        return _rows(gy).sum(0)

    def add_weight_gradient(self, gradient: Tensor, gy: Tensor, x: Tensor) -> bool:
        gradient.addmm_(_rows(gy).t(), _rows(x))
        return True


class Addmm(Linear):
    """y = bias + x weight: matrices alone, the weight the other way round."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None  # without one it is no addmm
        return addmm(bias, x, weight)

    def input_gradient(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return gy.mm(weight.t())

    def weight_gradient(
        self, gy: Tensor, x: Tensor, weight: Tensor, with_bias: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        return x.t().mm(gy), self.bias_gradient(gy) if with_bias else None

    def add_weight_gradient(self, gradient: Tensor, gy: Tensor, x: Tensor) -> bool:
        gradient.addmm_(x.t(), gy)
        return True


class Convolution:
    """A convolution of one, two or three dimensions.

    Args:
        original: torch's function.
        stride, padding, dilation: one number a dimension.
        groups: as torch's function takes it.
    """

    def __init__(
        self,
        original: Callable[..., Tensor],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        self._original = original
        self._geometry = (stride, padding, dilation, False, [0] * len(stride), groups)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, dilation, _, _, groups = self._geometry
        return self._original(x, weight, bias, stride, padding, dilation, groups)

    def input_gradient(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self._backward(gy, x, weight, [True, False, False])[0]

    def weight_gradient(
        self, gy: Tensor, x: Tensor, weight: Tensor, with_bias: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        _, of_weight, of_bias = self._backward(gy, x, weight.to(x.dtype), [False, True, with_bias])
        return of_weight, of_bias if with_bias else None

    def bias_gradient(self, gy: Tensor) -> Tensor:
        return gy.sum([0, *range(2, gy.dim())])

    def add_weight_gradient(self, gradient: Tensor, gy: Tensor, x: Tensor) -> bool:
        return False

    def _backward(self, gy: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Sequence[Tensor]:
        found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
            gy, x, weight, [weight.shape[0]], *self._geometry, wanted
        )
        return found


LINEAR, ADDMM = Linear(), Addmm()


def convolution_of(
    name: str, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> Convolution | None:
    """The operation of a call; None if its arguments are of a form that torch itself shall judge."""
    dimensions = weight.dim() - 2
    strides, dilations = _each(stride, dimensions), _each(dilation, dimensions)
    if strides is None or dilations is None:
        return None
    if padding == "same":
        # As many zeros as keep the size; an odd number of them torch puts on one side, by itself.
        total = [step * (size - 1) for step, size in zip(dilations, weight.shape[2:], strict=True)]
        padding = [zeros // 2 for zeros in total] if not any(zeros % 2 for zeros in total) else None
        if set(strides) != {1}:
            return None
    paddings = _each(0 if padding == "valid" else padding, dimensions)
    return None if paddings is None else Convolution(convolutions[name], strides, paddings, dilations, groups)


def _each(value: Any, dimensions: int) -> list[int] | None:
    """One number a dimension, as torch reads 2, (2,) and (2, 2)."""
    values = [value] if isinstance(value, int) else list(value) if isinstance(value, (tuple, list)) else []
    if len(values) == 1:
        values *= dimensions
    return values if len(values) == dimensions and all(isinstance(one, int) for one in values) else None
