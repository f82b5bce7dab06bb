"""Lists every argument of the modules that replace a module of torch.nn, and what serves it.

An argument has a line per group of values: an op of fastlm (KERNEL); torch's own computation, which a warning says once
per module and reason, and which raises if a backend was asked for (FALLBACK); or an error (ERROR).
"""

from __future__ import annotations

from typing import NamedTuple

KERNEL, FALLBACK, ERROR = "kernel", "fallback", "error"


class Argument(NamedTuple):
    """Holds one line: the argument, what serves it, for which values ("" for all others), and what differs."""

    name: str
    served: str
    values: str = ""
    note: str = ""


class Namesake(NamedTuple):
    """Holds the arguments of a constructor and of a call."""

    constructor: tuple[Argument, ...]
    call: tuple[Argument, ...]


def _kernel(*names: str) -> tuple[Argument, ...]:
    return tuple(Argument(name, KERNEL) for name in names)


_FACTORY = _kernel("device", "dtype")
_AUTOCAST = "under autocast the output has autocast's dtype"
_STEPS = "probabilities are applied in steps of 1/256"
_DROPOUT = (
    Argument("dropout", KERNEL, "", _STEPS),
    Argument("dropout", FALLBACK, "in training, above 0 or at 1, but rounded to 0 or 1"),
    Argument("dropout", ERROR, "not in [0, 1]"),
)
_REDUCTION = (
    Argument("reduction", KERNEL, "", "the mean over no target is 0; torch's is NaN"),
    Argument("reduction", ERROR, 'not "mean", "sum" or "none"'),
)
_CLASS_WEIGHTS = (
    Argument("weight", KERNEL),
    Argument("weight", FALLBACK, "with label_smoothing"),
    Argument("weight", ERROR, "of another shape"),
)
_SMOOTHING = (
    Argument("label_smoothing", KERNEL),
    Argument("label_smoothing", FALLBACK, "with weight"),
    Argument("label_smoothing", ERROR, "not in [0, 1]"),
)
_PADDING = "the output at padded positions is that of zeros, not torch's"


def _mask(name: str) -> tuple[Argument, ...]:
    return (
        Argument(name, KERNEL, "with is_causal=True", "is not read"),
        Argument(name, FALLBACK, "without is_causal=True"),
    )


def _padding(name: str) -> tuple[Argument, ...]:
    return (
        Argument(name, KERNEL, "bool, padding at the left and the right", _PADDING),
        Argument(
            name,
            FALLBACK,
            "bool, padding between valid positions",
            "on a GPU and under torch.compile an error of the device",
        ),
        Argument(name, FALLBACK, "float"),
        Argument(name, ERROR, "bool of another shape"),
    )


ARGUMENTS: dict[str, Namesake] = {
    "LayerNorm": Namesake(
        (
            Argument("normalized_shape", KERNEL),
            Argument("normalized_shape", ERROR, "without elements"),
            Argument("eps", KERNEL),
            Argument("eps", ERROR, "below 0"),
            *_kernel("elementwise_affine", "bias"),
            *_FACTORY,
        ),
        (Argument("input", KERNEL, "", _AUTOCAST), Argument("input", ERROR, "of another shape")),
    ),
    "GELU": Namesake(
        (Argument("approximate", KERNEL), Argument("approximate", ERROR, 'not "none" or "tanh"')),
        (
            Argument("input", KERNEL, "", _AUTOCAST),
            Argument("input", FALLBACK, "without dimensions, or with a last dimension of 0"),
        ),
    ),
    "MultiheadAttention": Namesake(
        (
            *_kernel("embed_dim", "num_heads"),
            *_DROPOUT,
            *_kernel("bias"),
            Argument("add_bias_kv", KERNEL, "False"),
            Argument("add_bias_kv", FALLBACK, "True"),
            Argument("add_zero_attn", KERNEL, "False"),
            Argument("add_zero_attn", FALLBACK, "True"),
            Argument("kdim", KERNEL, "embed_dim or None"),
            Argument("kdim", FALLBACK, "another size"),
            Argument("vdim", KERNEL, "embed_dim or None"),
            Argument("vdim", FALLBACK, "another size"),
            *_kernel("batch_first"),
            *_FACTORY,
        ),
        (
            *_kernel("query"),
            Argument("key", KERNEL, "query itself"),
            Argument("key", FALLBACK, "another tensor"),
            Argument("value", KERNEL, "query itself"),
            Argument("value", FALLBACK, "another tensor"),
            *_padding("key_padding_mask"),
            Argument("need_weights", KERNEL, "None or False", "None is the default; torch's is True"),
            Argument("need_weights", FALLBACK, "True"),
            *_mask("attn_mask"),
            Argument("average_attn_weights", KERNEL, "without need_weights=True", "has no effect, as in torch"),
            Argument("average_attn_weights", FALLBACK, "with need_weights=True"),
            Argument("is_causal", KERNEL, "", "True needs no attn_mask; torch needs one"),
        ),
    ),
    "TransformerEncoderLayer": Namesake(
        (
            *_kernel("d_model", "nhead", "dim_feedforward"),
            *(
                a._replace(note=f"{_STEPS}; behind the activation, and last in norm_first, dropout is torch's")
                if a.served == KERNEL
                else a
                for a in _DROPOUT
            ),
            Argument("activation", KERNEL, 'a GELU: "gelu", F.gelu, nn.GELU'),
            Argument("activation", FALLBACK, "any other", "attention and layer norms run on kernels"),
            Argument("activation", ERROR, 'a string other than "gelu" and "relu"'),
            Argument("layer_norm_eps", KERNEL),
            Argument("layer_norm_eps", ERROR, "below 0"),
            *_kernel("batch_first", "norm_first", "bias"),
            *_FACTORY,
        ),
        (
            Argument("src", KERNEL),
            Argument("src", ERROR, "a nested tensor"),
            *_mask("src_mask"),
            *_padding("src_key_padding_mask"),
            *_kernel("is_causal"),
        ),
    ),
    "TransformerEncoder": Namesake(
        (
            Argument("encoder_layer", KERNEL, "fastlm's"),
            Argument("encoder_layer", FALLBACK, "torch's"),
            *_kernel("num_layers", "norm"),
            Argument("enable_nested_tensor", KERNEL, "False", "False is the default; torch's is True"),
            Argument("enable_nested_tensor", ERROR, "True"),
            Argument("mask_check", KERNEL, "", "has no effect, because it goes with nested tensors"),
        ),
        (
            Argument("src", KERNEL),
            Argument("src", ERROR, "a nested tensor"),
            Argument("mask", KERNEL, "causal", "is not read"),
            Argument("mask", FALLBACK, "any other"),
            *_padding("src_key_padding_mask"),
            Argument("is_causal", KERNEL, "", "with None a mask is compared with a causal one, as in torch"),
        ),
    ),
    "LinearCrossEntropyLoss": Namesake(
        (
            *_kernel("in_features", "num_classes"),
            Argument("out_features", KERNEL, "()"),
            Argument("out_features", FALLBACK, "any other"),
            *_kernel("bias"),
            *_FACTORY,
            *_REDUCTION,
            *_CLASS_WEIGHTS,
            Argument("ignore_index", KERNEL),
            *_SMOOTHING,
            Argument("options", KERNEL, "None", "the kernel has its own chunks"),
            Argument("options", FALLBACK, "given"),
        ),
        (
            *_kernel("input"),
            Argument("target", KERNEL, "int64"),
            Argument("target", FALLBACK, "class probabilities"),
        ),
    ),
    "CrossEntropyLoss": Namesake(
        (
            *_CLASS_WEIGHTS,
            Argument("size_average", KERNEL, "", "deprecated, read as torch does"),
            Argument("ignore_index", KERNEL),
            Argument("reduce", KERNEL, "", "deprecated, read as torch does"),
            *_REDUCTION,
            *_SMOOTHING,
        ),
        (
            Argument("input", KERNEL, "", "the loss of half precision is float32; torch's is not"),
            Argument("target", KERNEL, "int64"),
            Argument("target", FALLBACK, "class probabilities"),
        ),
    ),
}
