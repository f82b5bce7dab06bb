"""Multi-head attention with the parameters and arguments of `torch.nn.MultiheadAttention`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlm import ops
from fastlm.backends import checked_name
from fastlm.nn._masks import HOLES, batch_and_length, causal_mask, padding_mask, rows_of
from fastlm.nn._modules import (
    checked_probability,
    dropout_options,
    fall_back,
    is_plain,
    reason_against_dropout,
    split_bias,
)


class MultiheadAttention(nn.MultiheadAttention):
    """Computes multi-head attention (Vaswani et al. 2017, section 3.2) with torch's parameters, by one kernel.

    Self-attention runs on the kernel: query, key and value are one tensor, and no weights are asked for. All else uses
    torch's own computation, and says so once per module and reason, or raises if a backend was asked for.
    `fastlm.nn.arguments` lists every argument.

    Three results differ from torch's. Without a word on need_weights the result is (output, None); torch's default is
    True. is_causal=True needs no attn_mask. The output at padded positions is the bias of `out_proj`, also in a
    sequence of padding alone, where torch's is NaN; torch computes values there.

    Args:
        embed_dim, num_heads: E and H.
        dropout: probability of dropping an attention probability, in steps of 1/256.
        bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as in torch.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        TypeError, ValueError: an argument could not be used by any call.
    """

    dropout_sites = 1
    backend = "auto"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        backend: str = "auto",
    ):
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        checked_probability(self, dropout)
        self.backend = checked_name(backend)
        reason = self._reason_of_parameters()
        if reason is not None and backend != "auto":
            fall_back(self, reason)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool | None = None,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        lengths: Tensor | None = None,
        starts: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (output, None), or (output, weights) for need_weights=True.

        Args:
            query, key, value: (S, B, E), with batch_first (B, S, E), or (S, E).
            key_padding_mask: bool (B, S), or (S,) for (S, E); True at padding. Padding at the left and at the right
                runs on the kernel. On a GPU, and under torch.compile, a bool mask with padding between valid positions
                is an error of the device.
            need_weights: None and False ask for no weights.
            attn_mask: is not read if is_causal is True, and otherwise handed to torch.
            is_causal: whether a query sees only the keys up to its own position.
            lengths, starts: (B,) int32, in place of key_padding_mask, as in `fastlm.attention`.
            seed: one int64 on the device of query.

        Raises:
            TypeError, ValueError: an argument's dtype, shape or device is wrong.
            RuntimeError: the backend asked for cannot serve the call.
        """
        reason = self._reason_of_call(query, key, value, key_padding_mask, need_weights, attn_mask, is_causal)
        if reason is None and key_padding_mask is not None:
            if lengths is not None or starts is not None:
                raise ValueError(f"{type(self).__name__}: give key_padding_mask or lengths, not both")
            rows = rows_of(type(self).__name__, key_padding_mask, query, self.batch_first)
            if rows is None:
                reason = f"key_padding_mask has {HOLES}"
            else:
                starts, lengths = rows
        if reason is None:
            return self.out_proj(self._heads(query, lengths, starts, is_causal, seed)), None
        fall_back(self, reason)
        if key_padding_mask is None and lengths is not None:
            key_padding_mask = padding_mask(lengths, starts, batch_and_length(key, self.batch_first)[1])
            key_padding_mask = key_padding_mask[0] if query.ndim == 2 else key_padding_mask
        if is_causal and attn_mask is None:
            attn_mask = causal_mask(batch_and_length(query, self.batch_first)[1], query.device)
        return super().forward(
            query,
            key,
            value,
            key_padding_mask=key_padding_mask,
            need_weights=bool(need_weights),
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )

    def attend(
        self,
        x: Tensor,
        *,
        lengths: Tensor | None,
        starts: Tensor | None = None,
        is_causal: bool,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes self-attention of x on the kernel.

        Returns the output without a bias, and the bias, or None if the bias is in the output.
        """
        return split_bias(self.out_proj, self._heads(x, lengths, starts, is_causal, seed))

    def _heads(
        self, x: Tensor, lengths: Tensor | None, starts: Tensor | None, is_causal: bool, seed: Tensor | None
    ) -> Tensor:
        """Returns the outputs of all heads side by side, of the shape of x."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        sequence_first = x.ndim == 3 and not self.batch_first
        if x.ndim == 2:
            qkv = qkv[None]
        elif sequence_first:
            qkv = qkv.transpose(0, 1)
        options = dropout_options(self, self.dropout, seed, x.device) | {"lengths": lengths, "starts": starts}
        o = ops.attention_packed(qkv, causal=is_causal, **options, backend=self.backend).flatten(-2)
        if x.ndim == 2:
            return o[0]
        return o.transpose(0, 1) if sequence_first else o

    def reason_against_call(
        self, x: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None, is_causal: bool
    ) -> str | None:
        """Returns why `attend` cannot serve self-attention of x, apart from values of the mask, or None if it can."""
        return self._reason_of_call(x, x, x, key_padding_mask, False, attn_mask, is_causal)

    def _reason_of_parameters(self) -> str | None:
        if self.bias_k is not None:
            return "add_bias_kv=True adds a key that has no token"
        if self.add_zero_attn:
            return "add_zero_attn=True adds a key that has no token"
        if not self._qkv_same_embed_dim:
            return f"kdim={self.kdim} or vdim={self.vdim} is not embed_dim={self.embed_dim}"
        return None

    def _reason_of_call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        need_weights: bool | None,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> str | None:
        reason = self._reason_of_parameters()
        if reason is not None:
            return reason
        if need_weights:
            return "need_weights=True asks for the attention probabilities, which the kernel never holds"
        if query is not key or key is not value:
            return "query, key and value are not one tensor (cross attention)"
        if query.is_nested:
            return "the input is a nested tensor"
        if attn_mask is not None and not is_causal:
            return "attn_mask is given without is_causal=True"
        if key_padding_mask is not None and key_padding_mask.dtype != torch.bool:
            return "key_padding_mask is not bool"
        if not self.training:
            return None
        return reason_against_dropout("dropout", self.dropout)


def can_attend(module: nn.Module) -> bool:
    """Returns whether `attend` of the module does what a call of it does."""
    return is_plain(module, MultiheadAttention)
