"""Cross-entropy: of logits, and of a linear layer that is given per call or owned."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm import ops
from fastlm.backends import checked_name
from fastlm.nn._modules import fall_back, is_plain
from fastlm.ops import _checks
from fastlm.ops._register import wide_dtype
from fastlm.ops.linear_cross_entropy import checked_options

IGNORED = -100  # the target of a row that is not predicted, as in torch and transformers
PROBABILITIES = "target holds class probabilities"


class LinearCrossEntropy(nn.Module):
    """Computes the cross-entropy of softmax(x weight^T + bias) without ever holding the logits.

    Shapes: x (..., E), weight (V, E), targets (...) int64 -> a scalar, or (...) for reduction "none"; float32
    (float64 for float64). It has no parameters of its own, so the weight may be tied to an embedding. If the weight has
    an attribute `main_grad` (V, E) float32, its gradient is added there, and `weight.grad` does not change.
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        checked_options(
            "LinearCrossEntropy",
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
        self.ignore_index, self.reduction, self.backend = ignore_index, reduction, checked_name(backend)
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        bias: Tensor | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss; `bias` (V,), `row_weights` (...) float32: the weight of each row in the loss."""
        return ops.linear_cross_entropy(
            x,
            weight,
            targets,
            bias=bias,
            row_weights=row_weights,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            main_grad=getattr(weight, "main_grad", None),
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, z_loss={self.z_loss}"
        )


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """Computes the cross-entropy of logits, as `torch.nn.CrossEntropyLoss`.

    If the logits come from a linear layer, `LinearCrossEntropyLoss` and `LinearCrossEntropy` never hold them.
    Class weights and targets of probabilities are listed in `fastlm.nn.arguments`.

    Two results differ from torch's. The loss is float32 (float64 for float64), and a mean over no target is 0, not NaN.

    Shapes: input (C,), (N, C) or (N, C, ...); target (), (N,) or (N, ...) int64 -> a scalar, or the shape of the target
    for reduction "none".

    Raises:
        TypeError, ValueError: an argument could not be used by any call.
        RuntimeError: the backend asked for cannot serve the call.
    """

    backend = "auto"

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = IGNORED,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        backend: str = "auto",
    ):
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        checked_options(
            type(self).__name__,
            ignore_index=ignore_index,
            reduction=self.reduction,
            label_smoothing=label_smoothing,
            z_loss=0.0,
        )
        self.backend = checked_name(backend)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reason = _reason_of_weights(self)
        if reason is None and target.is_floating_point():
            reason = PROBABILITIES
        if reason is not None:
            fall_back(self, reason)
            return super().forward(input, target)
        logits = input.movedim(1, -1) if input.ndim > 2 else input
        if self.weight is not None and self.weight.shape != logits.shape[-1:]:
            expected = tuple(logits.shape[-1:])
            raise ValueError(
                f"{type(self).__name__}: weight must have shape {expected}, got {tuple(self.weight.shape)}"
            )
        return ops.cross_entropy(
            logits,
            target,
            row_weights=_row_weights(self, target, logits),
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            backend=self.backend,
        )


def _reason_of_weights(module: nn.Module) -> str | None:
    if module.weight is not None and module.label_smoothing:
        return "weight and label_smoothing together weight each class of a row"
    return None


def _row_weights(module: nn.Module, target: Tensor, of: Tensor) -> Tensor | None:
    """Returns the class weight of each target, as the weight of its row, in the dtype of the losses of `of`."""
    if module.weight is None:
        return None
    ignored = IGNORED if module.ignore_index is None else module.ignore_index
    return module.weight[target.where(target != ignored, 0)].to(wide_dtype(of))


class _Owning(nn.modules.loss._WeightedLoss):
    """Is `torch.nn.LinearCrossEntropyLoss` for a torch without it: a linear layer and cross-entropy in torch's ops."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
    ):
        if options is not None:
            raise ValueError(f"{type(self).__name__}: options need torch 2.13, this is {torch.__version__}")
        super().__init__(weight=weight, reduction=reduction)
        self.num_classes, self.out_features = num_classes, out_features
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        outputs = math.prod(out_features, start=num_classes)
        self.linear = nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        logits = self.linear(input).unflatten(-1, (self.num_classes, *self.out_features))
        options = {"weight": self.weight, "reduction": self.reduction, "label_smoothing": self.label_smoothing}
        if not target.is_floating_point():
            options["ignore_index"] = IGNORED if self.ignore_index is None else self.ignore_index
        return F.cross_entropy(logits, target, **options)


class LinearCrossEntropyLoss(getattr(nn, "LinearCrossEntropyLoss", _Owning)):
    """Computes the cross-entropy of softmax(x W^T + bias), as torch 2.13's module of that name, without the logits.

    It owns the linear layer: parameters `linear.weight` (C, E), and `linear.bias` (C,) with bias=True.
    `LinearCrossEntropy` takes the weight per call, for tying. If `linear.weight` has an attribute `main_grad`, its
    gradient is added there.
    Class weights, targets of probabilities, `out_features` and `options` are listed in `fastlm.nn.arguments`.

    Two results differ from torch's. The loss is float32 (float64 for float64), and a mean over no target is 0, not NaN.

    Shapes: input (E,), (N, E) or (..., E); target (...) int64 -> a scalar, or (...) for reduction "none".

    Raises:
        TypeError, ValueError: an argument could not be used by any call.
        RuntimeError: the backend asked for cannot serve the call.
    """

    backend = "auto"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        backend: str = "auto",
    ):
        name = type(self).__name__
        _checks.checked_size(name, "in_features", in_features)
        _checks.checked_size(name, "num_classes", num_classes)
        if weight is not None and tuple(weight.shape) != (num_classes,):
            raise ValueError(f"{name}: weight must have shape ({num_classes},), got {tuple(weight.shape)}")
        checked_options(
            name,
            ignore_index=IGNORED if ignore_index is None else ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            z_loss=0.0,
        )
        super().__init__(
            in_features,
            num_classes,
            out_features=out_features,
            bias=bias,
            device=device,
            dtype=dtype,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
        self.backend = checked_name(backend)
        reason = self._reason_of_parameters()
        if reason is not None and backend != "auto":
            fall_back(self, reason)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        reason = self._reason_of_parameters()
        if reason is None and target.is_floating_point():
            reason = PROBABILITIES
        if reason is not None:
            fall_back(self, reason)
            return super().forward(input, target)
        ignored = IGNORED if self.ignore_index is None else self.ignore_index
        return ops.linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            bias=self.linear.bias,
            row_weights=_row_weights(self, target, self.linear.weight),
            ignore_index=ignored,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            main_grad=getattr(self.linear.weight, "main_grad", None),
            backend=self.backend,
        )

    def _reason_of_parameters(self) -> str | None:
        if self.out_features:
            return f"out_features={self.out_features} asks for several losses per row"
        if self.options is not None:
            return "options choose torch's own chunks; leave them out for the kernel, which has its own"
        if not is_plain(self.linear, nn.Linear):
            return f"linear was replaced by a {type(self.linear).__name__} or has hooks"
        return _reason_of_weights(self)
