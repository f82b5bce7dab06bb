"""fastlm's attention as one of transformers' attention implementations, "fastlm", with the masks that go with it.

transformers makes a mask once per forward and gives it to every layer. For this implementation the mask of a padded
batch is the sequences' rows, int32 (2, B): where each starts, and its length. Kernels read these instead of a mask of
(B, 1, S, S). Masks that are not of this kind stay as SDPA takes them, and go to SDPA: custom ones, those of queries and
keys of different length (a cache), and on a CPU those with padding between valid positions.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from fastlm import ops
from fastlm.dropout import draw_seeds
from fastlm.nn._masks import HOLES, causal_mask, checked_rows, padding_mask
from fastlm.patching import parts
from fastlm.patching.options import PatchOptions
from fastlm.patching.swap import Swapped
from fastlm.patching.torch_modules import reason_against_head_dim

NAME = "fastlm"
HAS_HOLES = f"fastlm: an attention mask has {HOLES}"


class SelfAttention(Swapped):
    """Marks an attention module of a model whose attention implementation is "fastlm"; its `forward` stays the same."""

    switch, in_model = "attention", True

    @classmethod
    def reason_against(cls, module: nn.Module, options: PatchOptions) -> str | None:
        reason = reason_against_head_dim(module.head_dim if hasattr(module, "head_dim") else module.attention_head_size)
        if reason:
            return reason
        position = getattr(module.config, "position_embedding_type", "absolute")
        if position != "absolute":
            return f"its position_embedding_type is {position!r}, which adds to the scores"
        for name in ("dropout", "attention_dropout", "attn_dropout"):
            if hasattr(module, name):
                return parts.reason_against_dropout(getattr(module, name))
        return None


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    config: Any = None,
    **options: Any,
) -> Tensor | None:
    """Returns the rows (2, B) of a 2-D mask, None without a mask, or SDPA's mask for any other call."""
    if _is_plain_self_attention(q_length, kv_length, q_offset, mask_function, config):
        if attention_mask is None:
            return None
        rows = rows_of(attention_mask)
        if rows is not None:
            return rows
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        config=config,
        **options,
    )


def _is_plain_self_attention(
    q_length: int, kv_length: int, q_offset: int | Tensor, mask_function: Callable[..., Any], config: Any
) -> bool:
    """Returns whether a mask is causal or bidirectional, and nothing else, for as many queries as keys.

    A module says itself whether it is causal. A configuration with is_causal=False makes bidirectional masks for a
    causal module, which this implementation could not tell.
    """
    if q_length != kv_length or isinstance(q_offset, Tensor) or q_offset:
        return False
    if mask_function is bidirectional_mask_function:
        return getattr(config, "is_causal", True)
    return mask_function is causal_mask_function


def rows_of(mask: Tensor) -> Tensor | None:
    """Returns the first row and the length of each sequence, int32 (2, B), of a mask (B, S), nonzero where valid.

    With padding between valid positions the result is None on a CPU, and a warning says so. On a GPU, and in compiled
    code, such a mask is an error of the device, for which the host does not wait.
    """
    rows = checked_rows(~mask.to(torch.bool), f"{HAS_HOLES}; fastlm.patch(model, attention=False) serves such masks")
    if rows is None:
        warnings.warn(f"{HAS_HOLES}; attention is computed by SDPA there", stacklevel=2)
        return None
    return torch.stack(rows)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Computes attention of query, key, value (B, H, S, D); returns (B, S, H, D), and weights only if they are wanted.

    Weights are computed by the model's eager attention, and calls that the kernels do not serve by SDPA.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    rows = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
    if rows is not None and _is_cross_attention(module):  # the op takes rows for queries and keys alike
        attention_mask, rows = full_mask(rows, query.shape[2], causal=False), None
    if _wants_weights(options):
        mask = attention_mask if rows is None else full_mask(rows, query.shape[2], causal)
        return _eager(module, query, key, value, mask, causal, dropout, scaling, options)
    if (attention_mask is not None and rows is None) or query.shape != key.shape:
        options |= {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    starts, lengths = (None, None) if rows is None else rows
    o = ops.attention(
        *(x.transpose(1, 2) for x in (query, key, value)),
        causal=causal,
        scale=scaling,
        lengths=lengths,
        starts=starts,
        **({"dropout_p": dropout, "seed": draw_seeds(1, query.device)} if dropout else {}),
        backend=module.fastlm_options.backend if isinstance(module, SelfAttention) else "auto",
    )
    return o, None


def _is_cross_attention(module: nn.Module) -> bool:
    """Returns whether the keys are those of another sequence, which may have the queries' length."""
    names = (cls.__name__ for cls in getattr(module, "original", type(module)).__mro__)
    return getattr(module, "is_cross_attention", False) or any("CrossAttention" in name for name in names)


def full_mask(rows: Tensor, length: int, causal: bool) -> Tensor:
    """Returns the mask (B, 1, S, S), True where a query sees a key, of rows (2, B) for S = length."""
    starts, lengths = rows
    mask = ~padding_mask(lengths, starts, length)[:, None, None, :].expand(-1, 1, length, length)
    return mask & ~causal_mask(length, rows.device) if causal else mask


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    dropout: float,
    scaling: float | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Calls the eager attention of the model's file, which adds a mask to the scores and returns the weights."""
    if mask is None and causal and query.shape[2] > 1:
        later = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = later.tril(key.shape[2] - query.shape[2])[None, None]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, mask, dropout=dropout, scaling=scaling, **options)


def _wants_weights(options: dict[str, Any]) -> bool:
    """Returns whether the caller of the model asked for output_attentions.

    Some models take the argument out of what they pass on. transformers' collector of outputs knows of it then.
    """
    if options.get("output_attentions"):
        return True
    collector = sys.modules.get("transformers.utils.output_capturing")
    if collector is None:
        return False
    active = collector._active_collector
    collected = active.global_var if torch.compiler.is_compiling() else active.get()
    return bool(collected) and ("attentions" in collected or "cross_attentions" in collected)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, make_mask)
