"""The encoder with the parameters and arguments of `torch.nn.TransformerEncoder`, and its layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm import ops
from fastlm.backends import checked_name
from fastlm.dropout import draw_seeds
from fastlm.nn._masks import batch_and_length, is_causal_mask, rows_of
from fastlm.nn._modules import (
    become,
    checked_probability,
    fall_back,
    gelu_form,
    is_plain,
    kind_of,
    reason_against_dropout,
    split_bias,
)
from fastlm.nn.layer_norm import LayerNorm
from fastlm.nn.multihead_attention import MultiheadAttention, can_attend
from fastlm.ops import _checks

NORMS = (LayerNorm, nn.LayerNorm)


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """Computes a layer of a transformer's encoder (Vaswani et al. 2017, section 3.1) with torch's parameters.

    By default h = LN(x + dropout(attention(x))), then LN(h + dropout(MLP(h))). With norm_first the layer norms come
    before attention and before the MLP. The ops are `attention_packed`, `bias_gelu` for a GELU, and `add_layer_norm`,
    which adds the linear layer's bias, dropout and residual. The last residual of norm_first, and the dropout behind
    the activation, are torch's. `fastlm.nn.arguments` lists every argument.
    torch's fast path for inference is never used.

    The modules `dropout`, `dropout1`, `dropout2`, `norm1`, `norm2`, `linear1`, `linear2` and `self_attn` have torch's
    names. A module that was replaced or has hooks is called as it is, without fusion.

    Args:
        d_model, nhead, dim_feedforward, dropout, layer_norm_eps, batch_first, norm_first, bias, device, dtype: as in
            torch.
        activation: "gelu", `torch.nn.functional.gelu` or a `torch.nn.GELU` runs on the kernel. Others, "relu" by
            default, use torch's own computation, which a warning says.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        TypeError, ValueError: an argument could not be used by any call.
        RuntimeError: there is no kernel for the activation, and a backend was asked for.
    """

    dropout_sites = 3
    backend = "auto"

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ):
        eps = _checks.checked_eps(type(self).__name__, layer_norm_eps)
        super().__init__(
            d_model, nhead, dim_feedforward, dropout, activation, eps, batch_first, norm_first, bias, device, dtype
        )
        checked_probability(self, dropout)
        self.backend = checked_name(backend)
        become(self.self_attn, MultiheadAttention, backend)
        become(self.norm1, LayerNorm, backend)
        become(self.norm2, LayerNorm, backend)
        if backend != "auto" and gelu_form(self.activation) is None:
            fall_back(self, self._reason_against_activation())

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
        seeds: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Applies the layer.

        Args:
            src: (S, B, E), with batch_first (B, S, E), or (S, E).
            src_mask, src_key_padding_mask, is_causal, lengths, starts: `attn_mask`, `key_padding_mask`, `is_causal`,
                `lengths` and `starts` of `MultiheadAttention`.
            seeds: one int64 or None for each of attention, dropout1 and dropout2.

        Raises:
            TypeError, ValueError: an argument's dtype, shape or device is wrong.
            RuntimeError: the backend asked for cannot serve the call.
        """
        check_not_nested(self, src)
        seeds = self._draw_seeds(src.device) if seeds is None else seeds
        x = self.norm1(src) if self.norm_first else src
        rows = {} if lengths is None and starts is None else {"lengths": lengths, "starts": starts}
        y, bias = self._attention(x, src_mask, src_key_padding_mask, is_causal, rows, seeds[0])
        if self.norm_first:
            h, total = self._add_norm(y, src, bias, self.dropout1, self.norm2, seeds[1], keep_sum=True)
            y, bias = self._feed_forward(h)
            return total + self.dropout2(y if bias is None else y + bias.to(y.dtype))
        h, _ = self._add_norm(y, src, bias, self.dropout1, self.norm1, seeds[1])
        y, bias = self._feed_forward(h)
        return self._add_norm(y, h, bias, self.dropout2, self.norm2, seeds[2])[0]

    def _draw_seeds(self, device: torch.device) -> Sequence[Tensor | None]:
        return draw_seeds(3, device).split(1) if self.training else (None, None, None)

    def _attention(
        self,
        x: Tensor,
        mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool,
        rows: dict[str, Tensor | None],
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the output of attention without a bias, and the bias, or None if it is in the output.

        `rows` are the lengths and starts that the caller gave.
        """
        module = self.self_attn
        direct = can_attend(module) and key_padding_mask is None
        if direct and module.reason_against_call(x, None, mask, is_causal) is None:
            return module.attend(x, **{"lengths": None} | rows, is_causal=is_causal, seed=seed)
        options = {"attn_mask": mask, "key_padding_mask": key_padding_mask, "is_causal": is_causal}
        if isinstance(module, MultiheadAttention):
            options |= rows | {"seed": seed}
        elif rows:
            raise ValueError(f"{type(self).__name__}: lengths need a self_attn of fastlm, got {type(module).__name__}")
        return module(x, x, x, need_weights=False, **options)[0], None

    def _feed_forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns linear2(dropout(activation(linear1(x)))) without its bias, and the bias."""
        form = gelu_form(self.activation)
        if form is None:
            fall_back(self, self._reason_against_activation())
            h = self.activation(self.linear1(x))
        else:
            h, bias = split_bias(self.linear1, x)
            h = ops.bias_gelu(h, bias, approximate=form, backend=self.backend)
        return split_bias(self.linear2, self.dropout(h))

    def _reason_against_activation(self) -> str:
        activation = self.activation
        return f"activation {getattr(activation, '__name__', type(activation).__name__)} has no kernel, only GELU has"

    def _add_norm(
        self,
        x: Tensor,
        residual: Tensor,
        bias: Tensor | None,
        dropout: nn.Module,
        norm: nn.Module,
        seed: Tensor | None,
        *,
        keep_sum: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns norm(s) for s = residual + dropout(x + bias), and s if `keep_sum`."""
        reason = _reason_against_fusion(dropout, norm)
        if reason is not None:
            fall_back(self, reason)
            s = residual + dropout(x if bias is None else x + bias.to(x.dtype))
            return norm(s), s
        drops = dropout.training and dropout.p > 0.0
        seed = (draw_seeds(1, x.device) if seed is None else seed) if drops else None
        options = {"bias": bias, "eps": norm.eps, "return_sum": keep_sum, "backend": self.backend}
        options |= {"dropout_p": dropout.p, "seed": seed} if drops else {}
        y = ops.add_layer_norm(x, residual, norm.weight, norm.bias, **options)
        return y if keep_sum else (y, None)


class TransformerEncoder(nn.TransformerEncoder):
    """Applies a stack of layers, as `torch.nn.TransformerEncoder`, without its fast path for inference.

    Args:
        encoder_layer: a `TransformerEncoderLayer`, of which each layer is a copy. A layer of another class is called as
            it is, which a warning says.
        num_layers, norm: as in torch.
        enable_nested_tensor: False; torch's default is True. Nested tensors serve torch's fast path alone.
        mask_check: has no effect, because it goes with nested tensors.

    Raises:
        ValueError: enable_nested_tensor is True.
    """

    backend = "auto"

    def __init__(
        self,
        encoder_layer: nn.TransformerEncoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = False,
        mask_check: bool = True,
        *,
        backend: str = "auto",
    ):
        if enable_nested_tensor:
            raise ValueError(
                f"{type(self).__name__}: enable_nested_tensor must be False: the kernels take padded batches with "
                "lengths, and nested tensors serve torch's fast path for inference alone"
            )
        super().__init__(encoder_layer, num_layers, norm, False, mask_check)
        self.backend = checked_name(backend)
        if not isinstance(encoder_layer, TransformerEncoderLayer):
            fall_back(self, f"encoder_layer is a {type(encoder_layer).__module__}.{type(encoder_layer).__name__}")

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Applies the layers, then `norm` if there is one.

        Args:
            src: (S, B, E), with batch_first (B, S, E), or (S, E).
            mask, src_key_padding_mask: as in `TransformerEncoderLayer`.
            is_causal: whether the mask is causal. With None the mask is compared with a causal one, for which the host
                waits on a GPU, as in torch; under torch.compile it is taken as another mask.

        Raises:
            TypeError, ValueError: an argument's dtype, shape or device is wrong.
            RuntimeError: the backend asked for cannot serve the call.
        """
        check_not_nested(self, src)
        if is_causal is None:
            length = batch_and_length(src, self.layers[0].self_attn.batch_first)[1]
            is_causal = mask is not None and is_causal_mask(mask, length)
        padding = self._padding(src, src_key_padding_mask)
        for layer in self.layers:
            src = layer(src, src_mask=mask, is_causal=is_causal, **padding)
        return src if self.norm is None else self.norm(src)

    def _padding(self, src: Tensor, mask: Tensor | None) -> dict[str, Tensor | None]:
        """Returns the layers' arguments for a mask: its rows, found once for all layers, if they can take them."""
        ours = all(kind_of(layer) is TransformerEncoderLayer and can_attend(layer.self_attn) for layer in self.layers)
        if ours and mask is not None and mask.dtype == torch.bool:
            rows = rows_of(type(self).__name__, mask, src, self.layers[0].self_attn.batch_first)
            if rows is not None:
                return rows._asdict()
        return {"src_key_padding_mask": mask}


def check_not_nested(module: nn.Module, src: Tensor) -> None:
    if src.is_nested:
        raise ValueError(
            f"{type(module).__name__}: src must be a padded tensor with src_key_padding_mask, got a nested tensor"
        )


def _reason_against_fusion(dropout: nn.Module, norm: nn.Module) -> str | None:
    """Returns why dropout and norm cannot run in one op, or None if they can."""
    if not is_plain(norm, *NORMS):
        return f"a layer norm was replaced by a {type(norm).__name__} or has hooks"
    if norm.weight is None or len(norm.normalized_shape) != 1:
        return "a layer norm has no weight or several dimensions"
    if not is_plain(dropout, nn.Dropout):
        return f"a dropout was replaced by a {type(dropout).__name__} or has hooks"
    return reason_against_dropout("dropout", dropout.p) if dropout.training else None
