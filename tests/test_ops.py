"""Tests of properties that every op has: any layout, empty and meta tensors, numbers of any type, clear errors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from checks import Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import fastlm
from fastlm import backends, ops
from fastlm.ops import SPECS

B, S, H, D, E, V = 3, 5, 2, 8, 16, 11
PARTED = 5  # sequences in the batch that is cut into two parts
Tensors = dict[str, Tensor]


def _tensors(batch: int = B, sequence: int = S) -> Tensors:
    """Returns one set of arguments for all calls below. Floating ones are float32."""
    generator = torch.Generator().manual_seed(5)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    lengths = torch.arange(batch, dtype=torch.int32) % 3 + sequence - 2 if sequence else torch.zeros(batch).int()
    rows = int(lengths.sum())
    return {
        "x": randn(batch, sequence, E),
        "residual": randn(batch, sequence, E),
        "gamma": 1 + 0.1 * randn(E),
        "beta": 0.1 * randn(E),
        "bias": randn(E),
        "seed": torch.tensor([1, 12345, 2])[1:2],
        "first": torch.tensor([1, 2**33 + 5, 2])[1:2],
        "q": randn(batch, sequence, H, D),
        "k": randn(batch, sequence, H, D),
        "v": randn(batch, sequence, H, D),
        "qkv": randn(rows, 3, H, D),
        "lengths": lengths,
        "cu_seqlens": torch.tensor([0, *lengths] if batch else [0, 0]).cumsum(0).to(torch.int32),
        "tokens": torch.randint(V, (batch, sequence), generator=generator),
        "segments": torch.randint(2, (batch, sequence), generator=generator),
        "position_ids": torch.randint(7, (batch, sequence), generator=generator),
        "word": randn(V, E),
        "position": randn(7, E),
        "segment": randn(2, E),
        "weight": randn(V, E),
        "class_bias": randn(V),
        "logits": randn(batch, sequence, V),
        "targets": torch.randint(V, (batch, sequence), generator=generator),
        "row_weights": torch.rand(batch, sequence, generator=generator),
    }


def _call(op: Callable[..., Tensor], *names: str, **options) -> tuple[tuple[str, ...], Callable[..., Tensor]]:
    """Returns an entry of CALLS for an op that takes all these tensors by position."""
    return names, lambda *t, backend: op(*t, **options, backend=backend)


# For each call the names of its tensors, and a function of these tensors and the backend. Together the calls use every
# tensor argument of every op.
CALLS: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    "layer_norm": _call(fastlm.layer_norm, "x", "gamma", "beta"),
    "add_layer_norm": (
        ("x", "residual", "gamma", "beta", "bias", "seed", "first"),
        lambda x, r, gamma, beta, bias, seed, first, backend: torch.cat(
            fastlm.add_layer_norm(
                x, r, gamma, beta, bias=bias, dropout_p=0.25, seed=seed, first_row=first, return_sum=True,
                backend=backend,
            )
        ),
    ),
    "add_layer_norm, from y": (
        ("x", "residual", "gamma", "beta", "bias", "seed", "first"),
        lambda x, r, gamma, beta, bias, seed, first, backend: fastlm.add_layer_norm(
            x, r, gamma, beta, bias=bias, dropout_p=0.25, seed=seed, first_row=first, keep_sum=False, backend=backend
        ),
    ),
    "gelu_layer_norm": (
        ("x", "gamma", "beta", "bias"),
        lambda x, gamma, beta, bias, backend: fastlm.gelu_layer_norm(x, gamma, beta, bias=bias, backend=backend),
    ),
    "layer_norm_gelu": _call(fastlm.layer_norm_gelu, "x", "gamma", "beta"),
    "bias_gelu": _call(fastlm.bias_gelu, "x", "bias"),
    "embedding_layer_norm": (
        ("tokens", "word", "position", "position_ids", "segment", "segments", "gamma", "beta", "seed", "first"),
        lambda tokens, word, position, ids, segment, segments, gamma, beta, seed, first, backend: (
            fastlm.embedding_layer_norm(
                tokens, word, position=position, position_ids=ids, segment=segment, segments=segments, gamma=gamma,
                beta=beta, dropout_p=0.25, seed=seed, first_row=first, backend=backend,
            )
        ),
    ),
    "embedding_layer_norm, GPT-1's": (
        ("tokens", "word", "position", "seed", "first"),
        lambda tokens, word, position, seed, first, backend: fastlm.embedding_layer_norm(
            tokens, word, position=position, dropout_p=0.25, seed=seed, first_row=first, backend=backend
        ),
    ),
    "attention": (
        ("q", "k", "v", "lengths", "seed", "first"),
        lambda q, k, v, lengths, seed, first, backend: fastlm.attention(
            q, k, v, lengths=lengths, dropout_p=0.25, seed=seed, first_sequence=first, backend=backend
        ),
    ),
    "attention_packed": (
        ("qkv", "cu_seqlens", "seed", "first"),
        lambda qkv, cu_seqlens, seed, first, backend: fastlm.attention_packed(
            qkv, cu_seqlens=cu_seqlens, max_seqlen=S, dropout_p=0.25, seed=seed, first_sequence=first, backend=backend
        ),
    ),
    "linear_cross_entropy": (
        ("x", "weight", "targets", "class_bias", "row_weights"),
        lambda x, weight, targets, bias, row_weights, backend: fastlm.linear_cross_entropy(
            x, weight, targets, bias=bias, row_weights=row_weights, backend=backend
        ),
    ),
    "linear_cross_entropy, a loss per row": (
        ("x", "weight", "targets", "class_bias", "row_weights"),
        lambda x, weight, targets, bias, row_weights, backend: fastlm.linear_cross_entropy(
            x, weight, targets, bias=bias, row_weights=row_weights, reduction="none", backend=backend
        ),
    ),
    "cross_entropy": (
        ("logits", "targets", "row_weights"),
        lambda logits, targets, row_weights, backend: fastlm.cross_entropy(
            logits, targets, row_weights=row_weights, backend=backend
        ),
    ),
}  # fmt: skip

WITHOUT_GRADIENT = ("row_weights",)


def _call_cases() -> list:
    """Returns parameters (call, case): every call on every backend, in float16, which all backends take."""
    return [
        pytest.param(call, case.values[0], id=f"{call}-{case.id}", marks=case.marks)
        for call in CALLS
        for case in cases(call.partition(",")[0])
        if case.values[0].dtype == torch.float16
    ]


def _evaluate(
    call: str, case: Case, tensors: Tensors, layout: Callable[[str, Tensor], Tensor] = lambda _, t: t
) -> Tensors:
    """Returns the output and all gradients of a call. `layout(name, tensor)` may change a tensor's memory layout."""
    names, function = CALLS[call]
    leaves, arguments = {}, []
    for name in names:
        t = tensors[name].to(case.device)
        if t.is_floating_point() and name not in WITHOUT_GRADIENT:
            leaves[name] = t = t.to(case.dtype).requires_grad_()
        arguments.append(layout(name, t))
    out = function(*arguments, backend=case.backend)
    out.sum().backward()  # the gradient of `out` is one expanded number
    return {"out": out.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


@functools.cache
def _expected(call: str, case: Case) -> Tensors:
    return _evaluate(call, case, _tensors())


def _with_gaps(t: Tensor) -> Tensor:
    """Returns the same values with a gap, filled with NaN or -1, after each element of the first dimension."""
    buffer = t.new_full((2 * t.shape[0] + 1, *t.shape[1:]), float("nan") if t.is_floating_point() else -1)
    buffer[1::2] = t
    return buffer[1::2]


def _unaligned(t: Tensor) -> Tensor:
    """Returns the same values, contiguous, but starting one element after an aligned address."""
    return torch.cat([t.new_zeros(1), t.reshape(-1)])[1:].view(t.shape)


def _permuted(t: Tensor) -> Tensor:
    """Returns the same values with the dimensions before the last in reverse order in memory."""
    order = (*range(t.ndim - 2, -1, -1), t.ndim - 1)
    return t.permute(order).contiguous().permute(order)


class ChangeLayout(TorchDispatchMode):
    """Changes the layout of all tensors that fastlm's ops receive, including statistics and incoming gradients."""

    def __init__(self, layout: Callable[[Tensor], Tensor]):
        super().__init__()
        self.layout, self.seen = layout, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastlm":
            args = [self.layout(a) if isinstance(a, Tensor) and a.ndim > 0 else a for a in args]
            self.seen.append((function, args))
        return function(*args, **(kwargs or {}))


def _assert_same(actual: Tensors, expected: Tensors) -> None:
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("layout", [_with_gaps, _unaligned, _permuted])
@pytest.mark.parametrize(("call", "case"), _call_cases())
def test_the_layout_of_a_tensor_changes_nothing(call, case, layout):
    with ChangeLayout(layout) as mode:
        actual = _evaluate(call, case, _tensors())
    assert len(mode.seen) >= 2  # a forward and a backward
    _assert_same(actual, _expected(call, case))


def test_every_op_is_public_and_is_called_here():
    """CALLS has every op except adamw, which takes lists of tensors, works in place and has no derivative."""
    assert {call.partition(",")[0] for call in CALLS} == SPECS.keys() - {"adamw"}
    for op in SPECS:
        assert getattr(fastlm, op) is getattr(ops, op)
        assert op in fastlm.__all__


@pytest.mark.parametrize("call", CALLS)
def test_opcheck(call):
    """The schema, fake implementation and derivative of every operator that a forward calls agree with the op."""
    names, function = CALLS[call]
    tensors = _tensors()
    leaves = [tensors[n].requires_grad_(tensors[n].is_floating_point() and n not in WITHOUT_GRADIENT) for n in names]
    with ChangeLayout(lambda t: t) as mode:
        function(*leaves, backend="reference")
    assert mode.seen
    for operator, arguments in mode.seen:
        again = [a.clone().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor) else a for a in arguments]
        torch.library.opcheck(operator, again, rtol=0, atol=0)


# Small tensors that kernels read by index. cu_seqlens is left out: it increases, so it cannot be one expanded number.
EXPANDABLE = ("gamma", "beta", "bias", "seed", "first", "lengths", "tokens", "segments", "position_ids", "class_bias",
              "targets", "row_weights")  # fmt: skip


@pytest.mark.parametrize(("call", "case"), _call_cases())
def test_one_value_may_be_expanded(call, case):
    tensors = {n: t.flatten()[0].expand(t.shape).clone() if n in EXPANDABLE else t for n, t in _tensors().items()}
    expected = _evaluate(call, case, tensors)
    expanded = lambda name, t: t.flatten()[0].expand(t.shape) if name in EXPANDABLE else t  # noqa: E731
    summed = {f"d{name}" for name in EXPANDABLE}  # summed over the expanded dimension, so not compared
    actual = _evaluate(call, case, tensors, expanded)
    _assert_same(actual, {name: value for name, value in expected.items() if name not in summed})


@pytest.mark.parametrize("table", [lambda t: t[:, 0], lambda t: t[0, 0].expand(B)], ids=["column", "expanded"])
@pytest.mark.parametrize("case", [p for p in cases("attention") if p.values[0].dtype == torch.float16])
def test_lengths_may_be_a_column_of_a_table(case, table):
    lengths = table(torch.tensor([[4, 1], [3, 1], [5, 1]], dtype=torch.int32, device=case.device))
    q = torch.randn(B, S, H, D, dtype=case.dtype, device=case.device)
    options = {"backend": case.backend}
    expected = fastlm.attention(q, q, q, lengths=lengths.clone(memory_format=torch.contiguous_format), **options)
    assert torch.equal(fastlm.attention(q, q, q, lengths=lengths, **options), expected)


# Arguments whose first dimension is the batch.
PER_SEQUENCE = ("x", "residual", "q", "k", "v", "lengths", "tokens", "segments", "position_ids")


def _sequences(tensors: Tensors, name: str, start: int, end: int) -> Tensor:
    """Returns an argument for sequences `start` to `end - 1` alone."""
    t = tensors[name]
    if name == "first":  # a row index (S rows per sequence) or a sequence index
        return t + start * (S if "x" in tensors or "tokens" in tensors else 1)
    if name == "cu_seqlens":
        return t[start : end + 1] - t[start]
    if name == "qkv":
        return t[tensors["cu_seqlens"][start] : tensors["cu_seqlens"][end]]
    return t[start:end] if name in PER_SEQUENCE else t


@pytest.mark.parametrize(("call", "case"), [p for p in _call_cases() if "first" in CALLS[p.values[0]][0]])
@given(cut=st.integers(1, PARTED - 1), first=st.sampled_from([0, 1, 2**32 // H - 2, 2**32 - 7, 2**61 + 3]))
@settings(max_examples=4)
def test_parts_of_a_batch_draw_the_masks_of_the_whole(call, case, cut, first):
    """Two parts of a batch, each with its `first`, give the same bits as the whole batch: outputs, and gradients of
    rows and sequences. Another `first` gives other masks."""
    batch = _tensors(PARTED) | {"first": torch.tensor([first])}
    tensors = {name: batch[name] for name in CALLS[call][0]}
    if "tokens" in tensors:  # every token occurs once, so that each row of dword comes from one row
        tensors |= {"tokens": torch.arange(PARTED * S).view(PARTED, S), "word": torch.randn(PARTED * S, E)}
    whole = _evaluate(call, case, tensors)
    parts = [
        _evaluate(call, case, {name: _sequences(tensors, name, *part) for name in tensors})
        for part in ((0, cut), (cut, PARTED))
    ]
    if call == "add_layer_norm":  # its output is y and the sum, concatenated
        parts_out = [part["out"].chunk(2) for part in parts]
        joined = {"out": torch.cat([torch.cat(both) for both in zip(*parts_out, strict=True)])}
    else:
        joined = {"out": torch.cat([part["out"] for part in parts])}
    for name in {"dx", "dresidual", "dq", "dk", "dv", "dqkv"} & whole.keys():
        joined[name] = torch.cat([part[name] for part in parts])
    if "dword" in whole:
        joined["dword"] = parts[0]["dword"] + parts[1]["dword"]
    _assert_same(whole, joined)
    tensors["first"] = tensors["first"] + 1
    assert not torch.equal(_evaluate(call, case, tensors)["out"], whole["out"])


@pytest.mark.parametrize("shape", [(0, S), (B, 0)], ids=["no sequences", "empty sequences"])
@pytest.mark.parametrize(("call", "case"), _call_cases())
def test_no_rows(call, case, shape):
    """The output is empty, or a loss of 0, and all gradients are 0."""
    results = _evaluate(call, case, _tensors(*shape))
    assert results["out"].numel() == 0 or results["out"] == 0
    for name, value in results.items():
        assert not value.count_nonzero(), name


@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("call", CALLS)
def test_meta_tensors_give_shapes(call, backend):
    dtype = torch.float16
    expected = _expected(call, Case("reference", dtype, "cpu"))
    results = _evaluate(call, Case(backend, dtype, "meta"), _tensors())
    for name, value in results.items():
        assert value.is_meta
        assert (value.shape, value.dtype) == (expected[name].shape, expected[name].dtype), name


@pytest.mark.parametrize("call", CALLS)
def test_forward_mode_raises(call):
    names, function = CALLS[call]
    tensors = _tensors()
    sentence = f"^{call.partition(',')[0]}: .* has a forward-mode tangent, but .* use reverse mode"
    for name in names:
        if not tensors[name].is_floating_point():
            continue

        def function_of(t: Tensor, name: str = name) -> Tensor:
            return function(*(t if n == name else tensors[n] for n in names), backend="auto")

        with pytest.raises(NotImplementedError, match=sentence):
            torch.func.jvp(function_of, (tensors[name],), (torch.ones_like(tensors[name]),))
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=sentence):
            function_of(forward_ad.make_dual(tensors[name], torch.ones_like(tensors[name])))


@pytest.mark.parametrize("call", CALLS)
def test_arguments_that_are_not_tensors_are_named(call):
    names, function = CALLS[call]
    tensors = _tensors()
    first = "first_sequence" if call.startswith("attention") else "first_row"
    for name in names:
        argument = {"class_bias": "bias", "first": first}.get(name, name)
        for wrong, kind in ((tensors[name].tolist(), "list"), (7, "int")):
            sentence = rf"^{call.partition(',')[0]}: {argument} must be a tensor( of .*)?, got {kind}$"
            with pytest.raises(TypeError, match=sentence):
                function(*(wrong if n == name else tensors[n] for n in names), backend="auto")


def _number_types(value: float) -> list:
    """Returns the value as numpy and torch scalars."""
    return [np.float64(value), torch.tensor(value, dtype=torch.float64), torch.tensor([value], dtype=torch.float64)[0]]


def _eps(op: Callable[..., Tensor], **options) -> Callable[..., Tensor]:
    return lambda t, eps: op(t["x"], t["gamma"], eps=eps, **options)


def _attention(t: Tensors, **options) -> Tensor:
    return fastlm.attention(t["q"], t["k"], t["v"], seed=t["seed"], **options)


def _loss(t: Tensors, **options) -> Tensor:
    return fastlm.linear_cross_entropy(t["x"], t["weight"], t["targets"], **options)


NUMBERS: dict[str, tuple[float, Callable[..., Tensor]]] = {
    "layer_norm eps": (1e-3, _eps(fastlm.layer_norm)),
    "gelu_layer_norm eps": (1e-3, _eps(fastlm.gelu_layer_norm)),
    "layer_norm_gelu eps": (1e-3, _eps(fastlm.layer_norm_gelu)),
    "add_layer_norm eps": (1e-3, lambda t, v: fastlm.add_layer_norm(t["x"], t["residual"], t["gamma"], eps=v)),
    "add_layer_norm dropout_p": (
        0.3,
        lambda t, v: fastlm.add_layer_norm(t["x"], t["residual"], t["gamma"], dropout_p=v, seed=t["seed"]),
    ),
    "embedding_layer_norm eps": (
        1e-3,
        lambda t, v: fastlm.embedding_layer_norm(t["tokens"], t["word"], gamma=t["gamma"], eps=v),
    ),
    "embedding_layer_norm dropout_p": (
        0.3,
        lambda t, v: fastlm.embedding_layer_norm(t["tokens"], t["word"], dropout_p=v, seed=t["seed"]),
    ),
    "attention dropout_p": (0.3, lambda t, v: _attention(t, dropout_p=v)),
    "attention scale": (0.3, lambda t, v: _attention(t, scale=v)),
    "linear_cross_entropy label_smoothing": (0.3, lambda t, v: _loss(t, label_smoothing=v)),
    "linear_cross_entropy z_loss": (0.3, lambda t, v: _loss(t, z_loss=v)),
}


@pytest.mark.parametrize("argument", NUMBERS)
def test_numbers_of_any_type_give_the_same_result(argument):
    value, function = NUMBERS[argument]
    expected = function(_tensors(), value)
    for number in _number_types(value):
        assert torch.equal(function(_tensors(), number), expected), type(number)


@pytest.mark.parametrize("op_and_argument", NUMBERS)
def test_arguments_that_are_not_numbers_are_named(op_and_argument):
    op, argument = op_and_argument.split()
    for wrong, kind in (("0.1", "str"), (torch.ones(2), r"a tensor of shape \(2,\)"), (None, "NoneType")):
        if wrong is None and argument == "scale":
            continue  # scale=None is the default
        with pytest.raises(TypeError, match=f"^{op}: {argument} must be a number, got {kind}$"):
            NUMBERS[op_and_argument][1](_tensors(), wrong)


def test_max_seqlen_and_ignore_index_may_be_any_integer():
    t = _tensors()
    packed = lambda n: fastlm.attention_packed(t["qkv"], cu_seqlens=t["cu_seqlens"], max_seqlen=n)  # noqa: E731
    for number in (np.int64(S), torch.tensor(S)):
        assert torch.equal(packed(number), packed(S))
        assert torch.equal(_loss(t, ignore_index=number), _loss(t, ignore_index=S))
    with pytest.raises(TypeError, match="^attention_packed: max_seqlen must be an integer, got float$"):
        packed(5.0)
    with pytest.raises(TypeError, match="^linear_cross_entropy: ignore_index must be an integer, got str$"):
        _loss(t, ignore_index="5")
