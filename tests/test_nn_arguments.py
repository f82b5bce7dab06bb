"""Every argument of a namesake of torch.nn is listed; each fallback equals torch's module, and each error raises."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastlm
from fastlm import nn as fnn
from fastlm.nn.arguments import ARGUMENTS, ERROR, FALLBACK

E, H, S, B = 16, 2, 5, 3
X = torch.randn(B, S, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LATE = torch.arange(S) >= torch.tensor([5, 3, 1])[:, None]
HOLE = torch.arange(S) == torch.tensor([5, 3, 1])[:, None]
BETWEEN = "bool, padding between valid positions"
BAND = torch.ones(S, S, dtype=torch.bool).triu(2)
LOSS, PLAIN_LOSS = ("LinearCrossEntropyLoss",), ("CrossEntropyLoss",)


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def lines(served: str) -> set[tuple[str, str, str]]:
    return {
        (n, a.name, a.values) for n, t in ARGUMENTS.items() for a in (*t.constructor, *t.call) if a.served == served
    }


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_of_torch_is_listed(name):
    theirs = getattr(nn, name, None) or THEIR_LOSS
    for method, listed in (("__init__", ARGUMENTS[name].constructor), ("forward", ARGUMENTS[name].call)):
        expected = list(inspect.signature(getattr(theirs, method)).parameters)[1:]
        assert list(dict.fromkeys(a.name for a in listed)) == expected
        ours = list(inspect.signature(getattr(getattr(fnn, name), method)).parameters)[1:]
        assert ours[: len(expected)] == expected


Call = Callable[[object], Tensor]
THEIR_LOSS = fnn.LinearCrossEntropyLoss.__mro__[1]


def attention(*inputs: Tensor, call: dict | None = None, **options: object) -> Call:
    """Returns a function that makes the attention of `fastlm.nn` or `torch.nn`, and calls it."""
    call = {"need_weights": False} | (call or {})
    return lambda lib: lib.MultiheadAttention(E, H, batch_first=True, **options)(*(inputs or (X, X, X)), **call)


def layer(constructor: dict | None = None, **call: object) -> Call:
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True} | (constructor or {})
    return lambda lib: lib.TransformerEncoderLayer(E, H, 2 * E, **options)(X, **call)


def encoder(**call: object) -> Call:
    def run(lib):
        one = lib.TransformerEncoderLayer(E, H, 2 * E, 0.0, "gelu", batch_first=True)
        return lib.TransformerEncoder(one, 2, enable_nested_tensor=False)(X, **call)

    return run


def loss(target: Tensor | None = None, **options: object) -> Call:
    target = torch.tensor([1, 0, 3, 2, 1]) if target is None else target
    return lambda lib: getattr(lib, "LinearCrossEntropyLoss", fnn.LinearCrossEntropyLoss.__mro__[1])(E, 4, **options)(
        X[0], target
    )


def plain_loss(target: Tensor | None = None, **options: object) -> Call:
    target = torch.tensor([1, 0, 3, 2, 1]) if target is None else target
    return lambda lib: lib.CrossEntropyLoss(**options)(X[0], target)


def chunked(lib) -> Tensor:
    return loss(options=nn.LinearCrossEntropyOptions())(lib)


ROUNDED = "in training, above 0 or at 1, but rounded to 0 or 1"
KEYS, VALUES = torch.randn(B, S, 4, dtype=torch.float64), torch.randn(B, S, 6, dtype=torch.float64)
FLOAT = torch.zeros(B, S, dtype=torch.float64).masked_fill(HOLE, -torch.inf)
WEIGHTS = torch.linspace(0.5, 2.0, E, dtype=torch.float64)
PLAIN_WEIGHTED = plain_loss(weight=WEIGHTS, label_smoothing=0.1)
WEIGHTED = loss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), label_smoothing=0.1)
FALLBACKS: dict[tuple[str, str, str], Call] = {
    ("GELU", "input", "without dimensions, or with a last dimension of 0"): lambda lib: lib.GELU()(X[0, 0, 0]),
    ("MultiheadAttention", "dropout", ROUNDED): attention(dropout=1.0),
    ("MultiheadAttention", "add_bias_kv", "True"): attention(add_bias_kv=True),
    ("MultiheadAttention", "add_zero_attn", "True"): attention(add_zero_attn=True),
    ("MultiheadAttention", "kdim", "another size"): attention(X, KEYS, X, kdim=4),
    ("MultiheadAttention", "vdim", "another size"): attention(X, X, VALUES, vdim=6),
    ("MultiheadAttention", "key", "another tensor"): attention(X, X + 1, X),
    ("MultiheadAttention", "value", "another tensor"): attention(X, X, X + 1),
    ("MultiheadAttention", "key_padding_mask", BETWEEN): attention(call={"key_padding_mask": HOLE}),
    ("MultiheadAttention", "key_padding_mask", "float"): attention(call={"key_padding_mask": FLOAT}),
    ("MultiheadAttention", "need_weights", "True"): attention(call={"need_weights": True}),
    ("MultiheadAttention", "attn_mask", "without is_causal=True"): attention(call={"attn_mask": BAND}),
    ("MultiheadAttention", "average_attn_weights", "with need_weights=True"): attention(
        call={"need_weights": True, "average_attn_weights": False}
    ),
    ("TransformerEncoderLayer", "dropout", ROUNDED): layer({"dropout": 1.0}),
    ("TransformerEncoderLayer", "activation", "any other"): layer({"activation": "relu"}),
    ("TransformerEncoderLayer", "src_mask", "without is_causal=True"): layer(src_mask=BAND),
    ("TransformerEncoderLayer", "src_key_padding_mask", BETWEEN): layer(src_key_padding_mask=HOLE),
    ("TransformerEncoderLayer", "src_key_padding_mask", "float"): layer(src_key_padding_mask=FLOAT),
    ("TransformerEncoder", "encoder_layer", "torch's"): lambda lib: lib.TransformerEncoder(
        nn.TransformerEncoderLayer(E, H, 32, 0.0, batch_first=True), 2, enable_nested_tensor=False
    )(X),
    ("TransformerEncoder", "mask", "any other"): encoder(mask=BAND),
    ("TransformerEncoder", "src_key_padding_mask", BETWEEN): encoder(src_key_padding_mask=HOLE),
    ("TransformerEncoder", "src_key_padding_mask", "float"): encoder(src_key_padding_mask=FLOAT),
    (*LOSS, "out_features", "any other"): loss(torch.ones(S, 2, dtype=torch.long), out_features=(2,)),
    (*LOSS, "weight", "with label_smoothing"): WEIGHTED,
    (*LOSS, "label_smoothing", "with weight"): WEIGHTED,
    (*LOSS, "options", "given"): chunked,
    (*LOSS, "target", "class probabilities"): loss(torch.full((S, 4), 0.25, dtype=torch.float64)),
    (*PLAIN_LOSS, "weight", "with label_smoothing"): PLAIN_WEIGHTED,
    (*PLAIN_LOSS, "label_smoothing", "with weight"): PLAIN_WEIGHTED,
    (*PLAIN_LOSS, "target", "class probabilities"): plain_loss(torch.full((S, E), 1 / E, dtype=torch.float64)),
}
SHORT = torch.zeros(B, S + 1, dtype=torch.bool)
NESTED = torch.nested.nested_tensor([torch.ones(2, E), torch.ones(3, E)])
ERRORS: dict[tuple[str, str, str], Call] = {
    ("LayerNorm", "normalized_shape", "without elements"): lambda lib: lib.LayerNorm(()),
    ("LayerNorm", "eps", "below 0"): lambda lib: lib.LayerNorm(E, -1.0),
    ("LayerNorm", "input", "of another shape"): lambda lib: lib.LayerNorm((S, 3))(X),
    ("GELU", "approximate", 'not "none" or "tanh"'): lambda lib: lib.GELU("erf"),
    ("MultiheadAttention", "dropout", "not in [0, 1]"): lambda lib: lib.MultiheadAttention(E, H, 1.5),
    ("MultiheadAttention", "key_padding_mask", "bool of another shape"): attention(call={"key_padding_mask": SHORT}),
    ("TransformerEncoderLayer", "dropout", "not in [0, 1]"): layer({"dropout": -0.5}),
    ("TransformerEncoderLayer", "activation", 'a string other than "gelu" and "relu"'): layer({"activation": "tanh"}),
    ("TransformerEncoderLayer", "layer_norm_eps", "below 0"): layer({"layer_norm_eps": -1}),
    ("TransformerEncoderLayer", "src", "a nested tensor"): lambda lib: lib.TransformerEncoderLayer(E, H)(NESTED),
    ("TransformerEncoderLayer", "src_key_padding_mask", "bool of another shape"): layer(src_key_padding_mask=SHORT),
    ("TransformerEncoder", "enable_nested_tensor", "True"): lambda lib: lib.TransformerEncoder(
        lib.TransformerEncoderLayer(E, H), 1, None, True
    ),
    ("TransformerEncoder", "src", "a nested tensor"): lambda lib: lib.TransformerEncoder(
        lib.TransformerEncoderLayer(E, H), 1
    )(NESTED),
    ("TransformerEncoder", "src_key_padding_mask", "bool of another shape"): encoder(src_key_padding_mask=SHORT),
    (*LOSS, "reduction", 'not "mean", "sum" or "none"'): loss(reduction="max"),
    (*LOSS, "weight", "of another shape"): loss(weight=torch.ones(3)),
    (*LOSS, "label_smoothing", "not in [0, 1]"): loss(label_smoothing=2.0),
    (*PLAIN_LOSS, "reduction", 'not "mean", "sum" or "none"'): plain_loss(reduction="max"),
    (*PLAIN_LOSS, "weight", "of another shape"): plain_loss(weight=torch.ones(3)),
    (*PLAIN_LOSS, "label_smoothing", "not in [0, 1]"): plain_loss(label_smoothing=2.0),
}


def test_every_fallback_and_every_error_has_a_case():
    assert set(FALLBACKS) == lines(FALLBACK)
    assert set(ERRORS) == lines(ERROR)


@pytest.mark.parametrize("line", FALLBACKS, ids=" ".join)
def test_a_fallback_equals_torch_and_says_so_or_raises_for_a_backend(line):
    if line == (*LOSS, "options", "given") and not hasattr(nn, "LinearCrossEntropyOptions"):
        pytest.skip("this torch has no LinearCrossEntropyOptions")
    run = FALLBACKS[line]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        expected = run(nn)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="torch's own computation is used"):
        actual = run(fnn)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    with fastlm.use_backend("cpu"), pytest.raises(RuntimeError, match="backend 'cpu' cannot serve this call"):
        run(fnn)


@pytest.mark.parametrize("line", ERRORS, ids=" ".join)
def test_an_error_raises(line):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"must|has to be|activation should be"):
        ERRORS[line](fnn)


def test_a_fallback_is_said_once_per_module():
    module = fnn.MultiheadAttention(E, H, batch_first=True)
    with pytest.warns(UserWarning, match="need_weights=True"):
        module(X, X, X, need_weights=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(X, X, X, need_weights=True)
