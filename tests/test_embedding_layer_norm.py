"""embedding_layer_norm: dropout(LN(We[tokens] + Wp[positions] + Ws[segments])), in every backend and dtype."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from checks import (
    Case,
    assert_accurate,
    assert_differentiable_once,
    assert_normalises_constant_rows,
    assert_passes_opcheck,
    assert_repeats,
    cases,
    constant_rows,
    inputs,
    long_cases,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
from fastlm.dropout import keep_count, row_mask

OP = "embedding_layer_norm"
PARTS = ("position", "segment", "gamma", "beta")


def tensors(case: Case, columns: int, parts: tuple[str, ...] = PARTS) -> dict[str, torch.Tensor]:
    rows = {"word": (50, columns), "position": (40, columns), "segment": (2, columns)}
    shapes = rows | {"gamma": (columns,), "beta": (columns,)}
    return inputs(case.device, case.dtype, **{name: shapes[name] for name in ("word", *parts)})


def ids(case: Case, batch: int, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 50, (batch, sequence), generator=generator)
    segments = torch.randint(0, 2, (batch, sequence), generator=generator)
    return tokens.to(case.device), segments.to(case.device)


def naive(tokens, segments, word, position=None, segment=None, gamma=None, beta=None, mask=None, keep=256, eps=1e-5):
    s = F.embedding(tokens, word)
    s = s if position is None else s + position[: tokens.shape[1]]
    s = s if segment is None else s + F.embedding(segments, segment)
    y = s if gamma is None else F.layer_norm(s, s.shape[-1:], gamma, beta, eps)
    return y if mask is None else y * mask.to(y.dtype) * (256 / keep)


def check(case: Case, batch: int, sequence: int, columns: int, parts: tuple[str, ...] = PARTS, p: float = 0.1) -> None:
    tokens, segments = ids(case, batch, sequence)
    seed = torch.tensor([99], device=case.device)
    keep = keep_count(p)
    mask = row_mask(seed, batch * sequence, columns, keep).view(batch, sequence, columns) if p else None
    given_segments = {"segments": segments} if "segment" in parts else {}
    options = {"dropout_p": p, "seed": seed, "backend": case.backend} | given_segments
    assert_accurate(
        lambda **t: fastlm.embedding_layer_norm(tokens, **t, **options),
        lambda **t: naive(tokens, segments, **t, mask=mask, keep=keep),
        tensors(case, columns, parts),
        case.dtype,
    )


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("shape", [(2, 24, 768), (3, 40, 100), (1, 30, 8)], ids=str)
def test_accuracy(case, shape):
    check(case, *shape)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize(
    "parts", [(), ("position",), ("position", "segment"), ("gamma",), ("position", "gamma", "beta")], ids=str
)
def test_each_part_is_optional(case, parts):
    check(case, 3, 20, 64, parts)
    check(case, 3, 20, 64, parts, p=0.0)


@pytest.mark.parametrize("case", long_cases(OP))
@given(batch=st.integers(1, 4), sequence=st.integers(1, 40), columns=st.integers(3, 300))
@settings(max_examples=6)
def test_any_shape(case, batch, sequence, columns):
    check(case, batch, sequence, columns)


@pytest.mark.parametrize("case", cases(OP))
def test_position_ids(case):
    t = tensors(case, 32)
    tokens, segments = ids(case, 3, 10)
    order = torch.arange(10, device=case.device).expand(3, 10)
    options = {"segments": segments, "backend": case.backend}
    default = fastlm.embedding_layer_norm(tokens, **t, **options)
    assert torch.equal(fastlm.embedding_layer_norm(tokens, **t, **options, position_ids=order), default)
    flipped = fastlm.embedding_layer_norm(
        tokens.flip(1), **(options | {"segments": segments.flip(1)}), **t, position_ids=order.flip(1)
    )
    assert torch.equal(flipped.flip(1), default)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("often", [3, 49], ids=str)
def test_gradients_of_frequent_ids(case, often):
    """One token nearly everywhere, one position for all tokens of a sequence, and table rows that are unused."""
    tokens, segments = ids(case, 5, 41)
    tokens = torch.where(tokens % 8 == 0, tokens, often)
    positions = torch.tensor([39, 0, 7, 7, 0], device=case.device)[:, None].expand(5, 41)
    assert_accurate(
        lambda **t: fastlm.embedding_layer_norm(
            tokens, **t, segments=segments, position_ids=positions, backend=case.backend
        ),
        lambda word, position, segment: (
            F.embedding(tokens, word) + F.embedding(positions, position) + F.embedding(segments, segment)
        ),
        tensors(case, 20, ("position", "segment")),
        case.dtype,
    )


@pytest.mark.parametrize("case", cases(OP))
def test_empty(case):
    t = {name: x.requires_grad_() for name, x in tensors(case, 32, ("position", "gamma")).items()}
    tokens = torch.zeros(2, 0, dtype=torch.int64, device=case.device)
    y = fastlm.embedding_layer_norm(tokens, **t, backend=case.backend)
    y.sum().backward()
    assert y.shape == (2, 0, 32)
    assert not any(x.grad.any() for x in t.values())


@pytest.mark.parametrize("case", cases(OP))
def test_constant_rows(case):
    tokens = torch.arange(61, device=case.device)[None]
    t = tensors(case, 768, ("gamma", "beta")) | {"word": constant_rows(case, 768)}
    op = partial(fastlm.embedding_layer_norm, tokens, backend=case.backend)
    assert_normalises_constant_rows(op, partial(naive, tokens, None), t, case)


@pytest.mark.parametrize("case", cases(OP))
def test_repeats_and_compiles(case):
    tokens, segments = ids(case, 4, 30)
    seed = torch.tensor([5], device=case.device)
    options = {"segments": segments, "dropout_p": 0.1, "seed": seed, "backend": case.backend}
    t = tensors(case, 48)
    assert_repeats(lambda **t: fastlm.embedding_layer_norm(tokens, **t, **options), t, case.dtype)


@pytest.mark.parametrize("case", cases(OP))
def test_opcheck(case):
    t = {name: x.requires_grad_() for name, x in tensors(case, 24).items()}
    tokens, segments = ids(case, 2, 6)
    order = torch.arange(6, device=case.device).expand(2, 6).contiguous()
    seed = torch.tensor([5], device=case.device)
    rest = (seed, seed, 230, 1e-5, case.dtype)
    tables = (t["segment"], segments, t["gamma"], t["beta"], *rest)
    for position_ids in (order, None):
        assert_passes_opcheck(OP, tokens, t["word"], t["position"], position_ids, *tables, True, 7, 2, case.backend)
    assert_passes_opcheck(OP, tokens, t["word"], *[None] * 6, *rest, False, None, None, case.backend)


def test_autocast_gives_its_dtype():
    case = Case("reference", torch.float32, "cpu")
    t, (tokens, segments) = tensors(case, 24), ids(case, 2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = fastlm.embedding_layer_norm(tokens, **t, segments=segments)
    expected = naive(tokens, segments, **t)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * expected.abs().max()


def test_second_derivative_raises():
    tokens = torch.tensor([[1, 2, 1]])
    for parts in ((), ("gamma",)):
        t = tensors(Case("reference", torch.float32, "cpu"), 24, parts)
        assert_differentiable_once(lambda **t: fastlm.embedding_layer_norm(tokens, **t), t)


TOKENS = torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"tokens": TOKENS.int()}, TypeError, "tokens must be int64, got int32"),
        ({"tokens": TOKENS + 3}, ValueError, r"tokens must lie in \[0, 5\), got 5"),
        ({"word": torch.zeros(5)}, ValueError, r"word must have shape \(V, E\), got \(5,\)"),
        ({"position": torch.zeros(2, 8)}, ValueError, "a sequence of 3 tokens is longer than the 2 rows of position"),
        ({"position": torch.zeros(4, 9)}, ValueError, r"position must have shape \(4, 8\), got \(4, 9\)"),
        ({"position_ids": TOKENS}, ValueError, "position_ids needs the table position"),
        ({"position": torch.zeros(2, 8), "position_ids": TOKENS}, ValueError, r"position_ids must lie in \[0, 2\)"),
        ({"segments": TOKENS}, ValueError, "segments needs segment: give both or neither"),
        ({"segment": torch.zeros(2, 8)}, ValueError, "segment needs segments: give both or neither"),
        ({"segment": torch.zeros(2, 8), "segments": TOKENS}, ValueError, r"segments must lie in \[0, 2\), got 2"),
        ({"beta": torch.zeros(8)}, ValueError, "beta needs gamma"),
        ({"gamma": torch.zeros(7)}, ValueError, r"gamma must have shape \(8,\), got \(7,\)"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastlm.embedding_layer_norm(**({"tokens": TOKENS, "word": torch.zeros(5, 8)} | arguments))


@pytest.mark.parametrize("case", cases(OP))
def test_padding_rows_get_no_gradient(case):
    """Compares with torch's embeddings, whose padding rows keep a zero gradient; a negative row counts from the end."""
    tokens, _ = ids(case, 3, 40)
    parameters = tensors(case, 64)
    given = {name: p.clone().requires_grad_() for name, p in parameters.items() if name in ("word", "position")}
    y = fastlm.embedding_layer_norm(tokens, **given, padding_idx=7, position_padding_idx=-1, backend=case.backend)
    y.sum().backward()
    counts = torch.bincount(tokens.flatten(), minlength=50)
    counts[7] = 0
    assert torch.equal(given["word"].grad, counts[:, None].to(y.dtype).expand(50, 64))
    assert torch.equal(given["position"].grad[:, 0].float(), torch.tensor([3.0] * 39 + [0.0], device=y.device))


def test_padding_rows_of_no_table_are_refused():
    tokens, word = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(5, 16)
    with pytest.raises(ValueError, match="padding_idx must be a row of its table, which has 5, got 5"):
        fastlm.embedding_layer_norm(tokens, word, padding_idx=5)
    with pytest.raises(ValueError, match="position_padding_idx must be a row of its table, which has 0, got 1"):
        fastlm.embedding_layer_norm(tokens, word, position_padding_idx=1)
    with pytest.raises(TypeError, match="padding_idx must be an integer"):
        fastlm.embedding_layer_norm(tokens, word, padding_idx=0.5)
