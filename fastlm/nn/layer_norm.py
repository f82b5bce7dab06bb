"""Layer norm, and the modules that fuse it with its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastlm import ops
from fastlm.backends import checked_name
from fastlm.nn._modules import checked_dropout, checked_gelu, dropout_options
from fastlm.ops import _checks
from fastlm.ops._register import wide_dtype


class LayerNorm(nn.LayerNorm):
    """Computes LN(x) over the last dimensions, as `torch.nn.LayerNorm` (Ba et al. 2016, equation 4).

    Shapes: x (..., *normalized_shape) -> the same. Parameters: weight and bias of shape normalized_shape, both None for
    elementwise_affine=False; bias=False leaves out the bias alone. Under autocast the output has autocast's dtype;
    torch's is float32 on a GPU.

    Raises:
        TypeError, ValueError: an argument could not be used by any call, or x does not have the normalized shape.
        RuntimeError: the backend asked for cannot serve the call.
    """

    backend = "auto"

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ):
        name = type(self).__name__
        shape = _checked_shape(name, normalized_shape)
        eps = _checks.checked_eps(name, eps)
        super().__init__(shape, eps, elementwise_affine, bias, device=device, dtype=dtype)
        self.backend = checked_name(backend)

    def forward(self, input: Tensor) -> Tensor:
        dimensions = len(self.normalized_shape)
        if input.shape[-dimensions:] != self.normalized_shape:
            raise ValueError(
                f"{type(self).__name__}: input must have shape (..., {', '.join(map(str, self.normalized_shape))}), "
                f"got {tuple(input.shape)}"
            )
        gamma, beta = self.weight, self.bias
        if gamma is None:
            gamma = input.new_ones(math.prod(self.normalized_shape), dtype=wide_dtype(input))
        if dimensions == 1:
            return ops.layer_norm(input, gamma, beta, eps=self.eps, backend=self.backend)
        gamma, beta = gamma.flatten(), None if beta is None else beta.flatten()
        y = ops.layer_norm(input.flatten(-dimensions), gamma, beta, eps=self.eps, backend=self.backend)
        return y.unflatten(-1, self.normalized_shape)


class _RowNorm(LayerNorm):
    """Is a layer norm over one dimension of size `hidden`, fused with what comes before or after it."""

    def __init__(self, hidden: int, *, eps: float, backend: str, **factory: Any):
        hidden = _checks.checked_size(type(self).__name__, "hidden", hidden)
        super().__init__(hidden, eps, backend=backend, **factory)

    @property
    def hidden(self) -> int:
        return self.normalized_shape[0]

    def extra_repr(self) -> str:
        return f"{self.hidden}, eps={self.eps}" + ("" if self.bias is not None else ", bias=False")


class AddLayerNorm(_RowNorm):
    """Computes the post-LN step LN(residual + dropout(x + bias)) (Vaswani et al. 2017, sections 3.1 and 5.4).

    Shapes: x and residual (..., E) -> (..., E). The bias is that of the linear layer that made x, and an argument of
    the call: see `return_bias` of `SelfAttention` and `MLP`. With `return_sum` the result is (y, sum), for pre-LN
    models. With keep_sum=False no sum is kept for the backward, which uses the output instead (see
    `fastlm.add_layer_norm`).
    """

    dropout_sites = 1

    def __init__(
        self,
        hidden: int,
        *,
        dropout: float = 0.0,
        eps: float = 1e-5,
        return_sum: bool = False,
        keep_sum: bool = True,
        backend: str = "auto",
        **factory: Any,
    ):
        super().__init__(hidden, eps=eps, backend=backend, **factory)
        self.dropout, self.return_sum, self.keep_sum = checked_dropout(self, dropout), return_sum, keep_sum

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        *,
        bias: Tensor | None = None,
        seed: Tensor | None = None,
        first_row: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Applies the step; `bias` (E,) is added to x before dropout.

        `seed`: one int64; `first_row`: as in `fastlm.add_layer_norm`.
        """
        return ops.add_layer_norm(
            x,
            residual,
            self.weight,
            self.bias,
            bias=bias,
            **dropout_options(self, self.dropout, seed, x.device, first_row=first_row),
            eps=self.eps,
            return_sum=self.return_sum,
            keep_sum=self.keep_sum,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, dropout={self.dropout}" + (", return_sum=True" if self.return_sum else "")
        return text + ("" if self.keep_sum else ", keep_sum=False")


class GELULayerNorm(_RowNorm):
    """Computes LN(GELU(x + bias)), the transform of BERT's masked-LM head; the bias is an argument of the call.

    Shapes: x (..., E) -> (..., E). `approximate` is "tanh" (both papers' code) or "none" (erf).
    """

    def __init__(
        self, hidden: int, *, approximate: str = "tanh", eps: float = 1e-5, backend: str = "auto", **factory: Any
    ):
        super().__init__(hidden, eps=eps, backend=backend, **factory)
        self.approximate = checked_gelu(self, approximate)

    def forward(self, x: Tensor, *, bias: Tensor | None = None) -> Tensor:
        options = {"approximate": self.approximate, "eps": self.eps, "backend": self.backend}
        return ops.gelu_layer_norm(x, self.weight, self.bias, bias=bias, **options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, approximate={self.approximate!r}"


class LayerNormGELU(_RowNorm):
    """Computes GELU(LN(x)). Shapes: x (..., E) -> (..., E). `approximate` is "tanh" or "none" (erf)."""

    def __init__(
        self, hidden: int, *, approximate: str = "tanh", eps: float = 1e-5, backend: str = "auto", **factory: Any
    ):
        super().__init__(hidden, eps=eps, backend=backend, **factory)
        self.approximate = checked_gelu(self, approximate)

    def forward(self, x: Tensor) -> Tensor:
        options = {"approximate": self.approximate, "eps": self.eps, "backend": self.backend}
        return ops.layer_norm_gelu(x, self.weight, self.bias, **options)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, approximate={self.approximate!r}"


def _checked_shape(name: str, shape: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the normalized shape as a tuple. Raises TypeError or ValueError if it has no elements."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not sizes:
        raise ValueError(f"{name}: normalized_shape must have at least one dimension, got {shape!r}")
    return tuple(_checks.checked_size(name, "normalized_shape", size) for size in sizes)
