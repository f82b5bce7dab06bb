"""attention and attention_packed with `starts`: padding on the left gives the results of padding on the right."""

from __future__ import annotations

import math

import pytest
import torch
from checks import Case, assert_accurate, cases, inputs, long_cases
from test_attention import FUSED_CASES, naive

import fastlm
from fastlm.dropout import attention_mask, keep_count


def int32(case: Case, values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=case.device)


def run(case: Case, x: dict[str, torch.Tensor], **options) -> tuple[torch.Tensor, ...]:
    """Returns o and dqkv for the qkv and do in x, with dropout."""
    qkv = x["qkv"].clone().requires_grad_()
    seed = torch.tensor([7], device=case.device)
    o = fastlm.attention_packed(qkv, dropout_p=0.1, seed=seed, backend=case.backend, **options)
    return o, *torch.autograd.grad(o, qkv, x["do"])


# The number of rows, and (start, length) of each sequence: padding on the left, on both sides, on the right, all rows.
SHAPES = [
    (37, [(14, 23), (5, 17), (0, 30), (9, 0), (0, 37), (37, 0)]),
    (150, [(133, 17), (3, 140)]),
]


@pytest.mark.parametrize("case", long_cases("attention_packed"))
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(("rows", "sequences"), SHAPES, ids=["one block", "several"])
def test_results_are_those_of_right_padding(case, causal, rows, sequences):
    check_results_of_right_padding(case, rows, sequences, causal=causal)


def check_results_of_right_padding(
    case: Case, rows: int, sequences: list[tuple[int, int]], *, causal: bool, dim: int = 64
) -> None:
    """Checks that outputs and gradients are equal bit for bit, and zero in the padding, which may hold NaN."""
    starts, lengths = (int32(case, list(values)) for values in zip(*sequences, strict=True))
    row = torch.arange(rows, device=case.device)
    inside = (row >= starts[:, None]) & (row < (starts + lengths)[:, None])
    right = row < lengths[:, None]
    x = inputs(case.device, case.dtype, qkv=(len(sequences), rows, 3, 1, dim), do=(len(sequences), rows, 1, dim))
    moved = {name: torch.full_like(value, torch.nan) for name, value in x.items()}
    for name, value in moved.items():
        value[inside] = x[name][right]
    expected = run(case, x, causal=causal, lengths=lengths)
    for a, b in zip(run(case, moved, causal=causal, lengths=lengths, starts=starts), expected, strict=True):
        assert torch.equal(a[inside], b[right])
        assert not a[~inside].any()


@pytest.mark.parametrize("case", cases("attention_packed"))
def test_results_are_those_of_packed_rows(case):
    starts, lengths = int32(case, [18, 0, 4]), int32(case, [5, 0, 19])
    row = torch.arange(23, device=case.device)
    inside = (row >= starts[:, None]) & (row < (starts + lengths)[:, None])
    x = inputs(case.device, case.dtype, qkv=(3, 23, 3, 2, 64), do=(3, 23, 2, 64))
    packed = {name: value[inside] for name, value in x.items()}
    cu_seqlens = int32(case, [0, 5, 5, 24])
    found = run(case, x, causal=True, lengths=lengths, starts=starts)
    expected = run(case, packed, causal=True, cu_seqlens=cu_seqlens, max_seqlen=23)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[inside], b)


@pytest.mark.parametrize("case", cases("attention"))
def test_accuracy(case):
    """Sequences of one length that begin in other rows: `naive` computes the rows in between, with the masks' origin
    there."""
    seed, keep = torch.tensor([77], device=case.device), keep_count(0.1)
    mask = attention_mask(seed, 2, 2, 20, 20, keep)
    starts, lengths = int32(case, [3, 11]), int32(case, [20, 20])
    row = starts[:, None].long() + torch.arange(20, device=case.device)
    batch = torch.arange(2, device=case.device)[:, None]
    options = {"causal": True, "starts": starts, "lengths": lengths, "dropout_p": 0.1, "seed": seed}

    def expected(q, k, v):
        o = naive(q[batch, row], k[batch, row], v[batch, row], causal=True, mask=mask, keep=keep, stored=case.dtype)
        return torch.zeros_like(q).index_put((batch, row), o)

    t = inputs(case.device, case.dtype, **dict.fromkeys("qkv", (2, 31, 2, 64)))
    assert_accurate(lambda **t: fastlm.attention(**t, **options, backend=case.backend), expected, t, case.dtype)


def operator(case: Case, starts: list[int], lengths: list[int]) -> tuple[torch.Tensor, ...]:
    """Returns o, lse, dq, dk and dv of the operators, which check no values."""
    t = inputs(case.device, case.dtype, **dict.fromkeys(("q", "k", "v", "do"), (2, 6, 2, 16)))
    options = (int32(case, lengths), int32(case, starts), None, 6, None, None, False, 0.25, 256, case.backend)
    o, lse = torch.ops.fastlm.attention(t["q"], t["k"], t["v"], *options)
    return o, lse, *torch.ops.fastlm.attention_backward(t["do"], t["q"], t["k"], t["v"], o, lse, *options)


@pytest.mark.parametrize("case", cases("attention"))
def test_log_sum_exp_is_infinite_in_the_padding(case):
    lse = operator(case, [2, 1], [4, 2])[1]
    assert lse.isinf().tolist() == [[[True] * 2 + [False] * 4] * 2, [[True] + [False] * 2 + [True] * 3] * 2]
    assert lse.isfinite().any() and lse.max() == math.inf


@pytest.mark.parametrize("case", FUSED_CASES)
@pytest.mark.parametrize(
    ("wrong", "right"),
    [(([-3, 4], [5, 9]), ([0, 4], [5, 2])), (([99, 2], [3, -1]), ([6, 2], [0, 0]))],
    ids=str,
)
def test_starts_out_of_range_are_clamped(case, wrong, right):
    for a, b in zip(operator(case, *wrong), operator(case, *right), strict=True):
        assert torch.equal(a, b)


Q = torch.zeros(2, 6, 3, 8)
GOOD = torch.tensor([1, 3], dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"lengths": None}, ValueError, "starts need lengths"),
        ({"starts": GOOD.long()}, TypeError, "starts must be int32, got int64"),
        ({"starts": GOOD[:1]}, ValueError, r"starts must have shape \(2,\), got \(1,\)"),
        ({"starts": -GOOD}, ValueError, r"starts must lie in \[0, 7\), got -1"),
        ({"starts": GOOD + 1}, ValueError, r"starts \+ lengths must lie in \[0, 7\), got 7"),
        ({"starts": [1, 3]}, TypeError, "starts must be a tensor of int32"),
    ],
)
def test_bad_starts(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastlm.attention(Q, Q, Q, **({"lengths": GOOD, "starts": GOOD} | arguments))


def test_packed_rows_have_no_starts():
    rows, cu_seqlens = torch.zeros(7, 3, 3, 8), torch.tensor([0, 3, 7], dtype=torch.int32)
    with pytest.raises(ValueError, match="give lengths and starts .* or cu_seqlens .* not both"):
        fastlm.attention_packed(rows, cu_seqlens=cu_seqlens, max_seqlen=4, starts=GOOD)
