"""attention and attention_packed in every backend and dtype that their SPECs name."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from checks import (
    Case,
    assert_accurate,
    assert_differentiable_once,
    assert_passes_opcheck,
    assert_repeats,
    cases,
    evaluate,
    inputs,
    kernel_cases,
    rounded,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import fastlm
from fastlm import backends, reference_attention
from fastlm.dropout import attention_mask, keep_count
from fastlm.ops import SPECS

FUSED_CASES = [case for case in cases("attention") if case.values[0].backend != "reference"]


def naive(q, k, v, causal=False, lengths=None, mask=None, keep=256, stored=None):
    """Computes attention in plain torch ops. Its gradient follows Dao et al. 2022 (section 3.1 and appendix B.2):

        ds = p * (dp - delta),    delta = rowsum(do * o)

    The ops store o in the dtype `stored`, and give the matrix units p and ds in it. If a row has few keys, these
    roundings are most of the error, so `naive` rounds o, p and ds, too, unless it computes in float64.
    """
    stored = stored or q.dtype
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    sequence = q.shape[2]
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]))
    position = torch.arange(sequence, device=q.device)
    if causal:
        scores = scores.masked_fill(position[None, :] > position[:, None], -torch.inf)
    if lengths is not None:
        valid = position < lengths[:, None]
        scores = scores.masked_fill(~valid[:, None, None, :], -1e4)
    if scores.requires_grad and scores.dtype != torch.float64:
        scores.register_hook(lambda ds: ds.to(stored).to(ds.dtype))
    lse = torch.logsumexp(scores, -1, keepdim=True)
    p = torch.exp(scores - lse.detach())
    if lengths is not None:
        p = p * valid[:, None, None, :] * valid[:, None, :, None]
    p = p if mask is None else p * mask.to(p.dtype) * (256 / keep)
    o = rounded(p, stored) @ v
    # The second term is 0, and makes -delta the gradient of lse.
    return (o - rounded(o, stored).detach() * (lse - lse.detach())).transpose(1, 2)


def tensors(case: Case, batch: int, sequence: int, heads: int, dim: int) -> dict[str, torch.Tensor]:
    shape = (batch, sequence, heads, dim)
    return inputs(case.device, case.dtype, q=shape, k=shape, v=shape)


def check(case: Case, shape: tuple[int, ...], *, causal=False, lengths=None, p=0.1) -> None:
    batch, sequence, heads, _ = shape
    seed = torch.tensor([77], device=case.device)
    keep = keep_count(p)
    mask = attention_mask(seed, batch, heads, sequence, sequence, keep) if p else None
    lengths = None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device=case.device)
    options = {"causal": causal, "lengths": lengths}
    assert_accurate(
        lambda **t: fastlm.attention(**t, **options, dropout_p=p, seed=seed, backend=case.backend),
        lambda **t: naive(**t, **options, mask=mask, keep=keep, stored=case.dtype),
        tensors(case, *shape),
        case.dtype,
    )


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("shape", [(2, 128, 2, 64), (1, 140, 2, 32), (2, 33, 1, 96), (3, 17, 2, 128)], ids=str)
def test_accuracy(case, causal, shape):
    check(case, shape, causal=causal)


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_accuracy_with_lengths(case, causal):
    check(case, (4, 40, 2, 64), causal=causal, lengths=[40, 1, 0, 23])
    check(case, (4, 40, 2, 64), causal=causal, lengths=[3, 17, 40, 16], p=0.0)


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("dim", [1, 7, 40, 120])
def test_accuracy_with_other_head_dims(case, dim):
    """head_dims that are not powers of 2. Backends that need a multiple refuse the others."""
    # Small head_dims have more values in return: the largest of few errors depends on the CPU's order of summing.
    multiple, shape = SPECS["attention"].limits[case.backend].multiple, (2 if dim > 16 else 8, 19, 8, dim)
    if dim % multiple == 0:
        check(case, shape, causal=True)
    else:
        with pytest.raises(RuntimeError, match=f"a multiple of {multiple}, not {dim}"):
            check(case, shape, causal=True)


@pytest.mark.parametrize("case", cases("attention"))
def test_accuracy_with_lengths_of_several_tiles(case):
    check(case, (3, 150, 1, 64), lengths=[150, 0, 70])


@pytest.mark.parametrize("case", cases("attention"))
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 70), st.integers(1, 3), st.sampled_from([32, 64])),
    causal=st.booleans(),
    p=st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=6)
def test_any_shape(case, shape, causal, p):
    check(case, shape, causal=causal, p=p)


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_one_key(case, p):
    """With one key the probability is 1, so o is v times 0 or 2 (dropout), and the gradients of q and k are 0.

    They are 0 up to rounding: ds is the difference of two sums of the same 64 products do * v, summed in two orders.
    """
    t = tensors(case, 3, 1, 4, 64)
    seed = torch.tensor([11], device=case.device)
    options = {"dropout_p": p, "seed": seed, "backend": case.backend}
    result = evaluate(lambda **t: fastlm.attention(**t, **options), t, case.dtype)
    kept = torch.ones_like(t["v"])
    if p > 0:
        kept *= 2 * attention_mask(seed, 3, 4, 1, 1, keep_count(p)).transpose(1, 2)
        assert kept.unique().tolist() == [0, 2]
    assert torch.equal(result["out0"], t["v"] * kept)
    assert not result["dv"][kept == 0].any()
    largest = {name: x.double().abs().amax() for name, x in (t | {"do": result["dv"]}).items()}
    bound = 2 * 64**2 * torch.finfo(torch.float32).eps / 2 * largest["do"] * largest["v"] / 8
    assert result["dq"].abs().max() <= bound * largest["k"]
    assert result["dk"].abs().max() <= bound * largest["q"]


FIRST = (None, 2**32 // 3, 2**40 + 1)  # with 3 heads, first * heads of the second is 2^32 - 1


def first_of(case: Case, first: int | None) -> torch.Tensor | None:
    return None if first is None else torch.tensor([first], device=case.device)


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("first", FIRST)
def test_forward_uses_the_mask_of_all_backends(case, first):
    """With q = k = 0 each probability is 1 / S, and with v = identity o shows the mask and the scale."""
    sequence = 64
    q = torch.zeros(2, sequence, 3, 64, dtype=case.dtype, device=case.device)
    v = torch.eye(sequence, dtype=case.dtype, device=case.device)[None, :, None, :].expand(2, -1, 3, -1)
    seed = torch.tensor([2**50 + 3], device=case.device)
    first = first_of(case, first)
    o = fastlm.attention(q, q, v, dropout_p=0.3, seed=seed, first_sequence=first, backend=case.backend)
    mask = attention_mask(seed, 2, 3, sequence, sequence, keep_count(0.3), first)
    assert torch.equal(o.transpose(1, 2) != 0, mask)
    kept = o[o != 0].double()
    assert (kept * sequence * keep_count(0.3) / 256 - 1).abs().max() <= 2 * torch.finfo(case.dtype).eps


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize(("sequence", "first"), [(64, None), (64, 2**31), (128, None), (128, 2**40 + 1)])
def test_backward_uses_the_mask_of_all_backends(case, sequence, first):
    """With q = k = 0 and do = identity, dv is the transposed matrix of probabilities after dropout."""
    q = torch.zeros(1, sequence, 2, sequence, dtype=case.dtype, device=case.device)
    seed = torch.tensor([2**50 + 3], device=case.device)
    v = torch.zeros_like(q).requires_grad_()
    first = first_of(case, first)
    o = fastlm.attention(q, q, v, dropout_p=0.3, seed=seed, first_sequence=first, backend=case.backend)
    identity = torch.eye(sequence, dtype=case.dtype, device=case.device)[None, :, None, :].expand_as(o)
    (dv,) = torch.autograd.grad(o, v, identity)
    mask = attention_mask(seed, 1, 2, sequence, sequence, keep_count(0.3), first)
    assert torch.equal(dv.permute(0, 2, 3, 1) != 0, mask)


@pytest.mark.parametrize("case", cases("attention_packed"))
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_packed_projection_equals_separate(case, causal):
    qkv = inputs(case.device, case.dtype, qkv=(2, 37, 3, 2, 64))
    options = {"causal": causal, "dropout_p": 0.1, "seed": torch.tensor([7], device=case.device)}
    packed = evaluate(lambda qkv: fastlm.attention_packed(qkv, **options, backend=case.backend), qkv, case.dtype)
    separate = evaluate(lambda qkv: fastlm.attention(*qkv.unbind(2), **options, backend=case.backend), qkv, case.dtype)
    assert torch.equal(packed["out0"], separate["out0"])
    assert torch.equal(packed["dqkv"], separate["dqkv"])


@pytest.mark.parametrize("case", cases("attention_packed"))
@pytest.mark.parametrize("lengths", [[5, 0, 19, 1], [130, 3]], ids=str)
def test_packed_rows_equal_padded_rows(case, lengths):
    """Packed and padded batches draw the same masks and give the same rows, forward and backward."""
    longest = max(lengths)
    lengths = torch.tensor(lengths, dtype=torch.int32, device=case.device)
    cu_seqlens = torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=torch.int32)])
    padded = inputs(case.device, case.dtype, qkv=(len(lengths), longest, 3, 2, 64))["qkv"]
    valid = torch.arange(longest, device=case.device) < lengths[:, None]
    options = {"dropout_p": 0.1, "seed": torch.tensor([7], device=case.device), "backend": case.backend}
    rows = {"cu_seqlens": cu_seqlens, "max_seqlen": longest}
    a = padded.clone().requires_grad_()
    b = padded[valid].clone().requires_grad_()
    oa = fastlm.attention_packed(a, lengths=lengths, **options)
    ob = fastlm.attention_packed(b, **rows, **options)
    assert torch.equal(oa[valid], ob)
    assert not oa[~valid].any()
    do = torch.randn_like(oa)
    (ga,) = torch.autograd.grad(oa, a, do)
    (gb,) = torch.autograd.grad(ob, b, do[valid])
    assert torch.equal(ga[valid], gb)
    assert not ga[~valid].any()


@pytest.mark.parametrize("case", cases("attention"))
def test_padding_has_no_effect(case):
    """Large values in padded rows do not change the output."""
    t = tensors(case, 2, 24, 2, 64)
    lengths = torch.tensor([11, 24], dtype=torch.int32, device=case.device)
    clean = fastlm.attention(**t, lengths=lengths, backend=case.backend)
    for x in t.values():
        x[0, 11:] = 1e4
    assert torch.equal(fastlm.attention(**t, lengths=lengths, backend=case.backend), clean)


def outputs(case: Case, t: dict[str, torch.Tensor], do: torch.Tensor, **options) -> tuple[torch.Tensor, ...]:
    """Returns o, dq, dk and dv for the q, k and v in `t`, with dropout."""
    leaves = [x.clone().requires_grad_() for x in t.values()]
    seed = torch.tensor([7], device=case.device)
    o = fastlm.attention(*leaves, dropout_p=0.1, seed=seed, **options, backend=case.backend)
    return o, *torch.autograd.grad(o, leaves, do)


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("sequence", [24, 150])
def test_padding_may_be_anything(case, causal, sequence):
    """NaN and infinity in padded rows change no output and no gradient."""
    t = tensors(case, 2, sequence, 1, 64)
    options = {"causal": causal, "lengths": torch.tensor([11, sequence], dtype=torch.int32, device=case.device)}
    do = tensors(case, 2, sequence, 1, 64)["q"]
    clean = outputs(case, t, do, **options)
    for x in (*t.values(), do):
        x[0, 11:17], x[0, 17:] = torch.nan, torch.inf
    for expected, actual in zip(clean, outputs(case, t, do, **options), strict=True):
        assert torch.equal(expected, actual)
        assert not actual[0, 11:].any()


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("bad", [1, 3])
def test_packed_sequences_do_not_reach_into_each_other(case, causal, bad):
    """NaN in one sequence changes no output and no gradient of the others."""
    offsets = [0, 19, 30, 30, 160]
    t = {name: x[0] for name, x in tensors(case, 1, offsets[-1], 1, 64).items()}
    cu_seqlens = torch.tensor(offsets, dtype=torch.int32, device=case.device)
    options = {"causal": causal, "cu_seqlens": cu_seqlens, "max_seqlen": 130}
    do = t["q"].flip(0)
    clean = outputs(case, t, do, **options)
    inside = slice(offsets[bad], offsets[bad + 1])
    others = torch.ones(offsets[-1], dtype=torch.bool, device=case.device)
    others[inside] = False
    for x in (*t.values(), do):
        x[inside] = torch.nan
    for expected, actual in zip(clean, outputs(case, t, do, **options), strict=True):
        assert torch.equal(expected[others], actual[others])
        assert actual[inside].isnan().all()


@pytest.mark.parametrize("case", FUSED_CASES)
@pytest.mark.parametrize("lengths", [None, [23, 0]], ids=str)
def test_log_sum_exp(case, lengths):
    """The op also returns the LSE: natural logarithms, and infinity for padded queries."""
    t = tensors(case, 2, 40, 2, 64)
    lengths = None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device=case.device)
    arguments = (*t.values(), lengths, None, None, 40, None, None, True, 0.125, 256)
    _, lse = torch.ops.fastlm.attention(*arguments, case.backend)
    _, expected = reference_attention.attention_forward(*t.values(), lengths, None, None, True, 0.125, 256)
    assert lse.dtype == torch.float32
    assert torch.equal(lse.isinf(), expected.isinf())
    # Scores are under 8, and each is a sum of 64 rounded products.
    difference = (lse - expected)[~expected.isinf()]
    assert difference.numel() == 0 or difference.abs().max() <= 64 * 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("case", kernel_cases("attention"))
def test_packed_projection_is_not_copied(case, monkeypatch):
    """The kernels read q, k and v in the projection's memory, and write dq, dk and dv into one gradient."""
    seen: dict[str, list[torch.Tensor]] = {}
    launchers = backends.launchers(case.backend, "attention")

    def forward(q, k, v, *rest):
        seen["inputs"] = [q, k, v]
        launchers.attention_forward(q, k, v, *rest)

    def backward(do, q, k, v, o, lse, lengths, starts, cu_seqlens, max_seqlen, seed, first, dq, dk, dv, *rest):
        seen["again"], seen["gradients"] = [q, k, v], [dq, dk, dv]
        sequences = (lengths, starts, cu_seqlens, max_seqlen, seed, first)
        launchers.attention_backward(do, q, k, v, o, lse, *sequences, dq, dk, dv, *rest)

    spy = SimpleNamespace(attention_forward=forward, attention_backward=backward)
    monkeypatch.setattr(backends, "launchers", lambda *_: spy)
    qkv = inputs(case.device, case.dtype, qkv=(2, 9, 3, 2, 64))["qkv"].requires_grad_()
    o = fastlm.attention_packed(qkv, backend=case.backend)
    (dqkv,) = torch.autograd.grad(o, qkv, torch.ones_like(o))
    for views, whole in ((seen["inputs"], qkv), (seen["again"], qkv), (seen["gradients"], dqkv)):
        for view, part in zip(views, whole.unbind(2), strict=True):
            assert (view.data_ptr(), view.stride()) == (part.data_ptr(), part.stride())


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("unit", ["WGMMA", "TCGEN05", "MMA"])
def test_tiles_of_every_chip(unit, causal, monkeypatch):
    """Runs the tiles of every chip; on a GPU, other tests run only those of that GPU."""
    if torch.cuda.is_available():
        pytest.skip("tiles of other chips may not fit this one's shared memory: run in the interpreter")
    kernels = backends.launchers("triton", "attention")
    monkeypatch.setattr(kernels, "_matrix_unit", lambda q: getattr(kernels, unit))
    case = Case("triton", torch.float16, "cpu")
    check(case, (1, 140, 1, 64), causal=causal)
    check(case, (2, 20, 1, 128), causal=causal, lengths=[20, 3])


def test_tf32_where_torch_allows_it(monkeypatch):
    """Products of float32 are IEEE float32, or TF32 if torch allows TF32 for its own."""
    kernels = backends.launchers("triton", "attention")
    seen = []

    class Kernel:
        fn = kernels._forward.fn

        def __getitem__(self, grid):
            return lambda *_, PRECISION, **__: seen.append(PRECISION)

    monkeypatch.setattr(kernels, "_forward", Kernel())
    q = torch.zeros(1, 4, 1, 16)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "highest"):
            torch.set_float32_matmul_precision(precision)
            kernels.attention_forward(q, q, q, None, None, None, 4, None, None, q, q[..., 0], False, 1.0, 256)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["tf32", "ieee"]


def test_large_head_dims_are_served_by_the_reference():
    q, call = torch.zeros(1, 4, 1, 136), backends.Call("cuda", torch.float32, 136)
    with pytest.raises(RuntimeError, match="last dimension of at most 128, not 136"):
        backends.choose(SPECS["attention"], "triton", call)
    assert backends.choose(SPECS["attention"], "auto", call) == "reference"
    assert torch.equal(fastlm.attention(q, q, q), q)


@pytest.mark.parametrize("case", FUSED_CASES)
@pytest.mark.parametrize(
    ("wrong", "right"),
    [({"lengths": [-3, 99]}, {"lengths": [0, 6]}), ({"cu_seqlens": [-5, 9, 40]}, {"cu_seqlens": [0, 9, 12]})],
    ids=["lengths", "offsets"],
)
def test_lengths_and_offsets_out_of_range_are_clamped(case, wrong, right):
    """The host cannot check values on a GPU, so kernels clamp lengths and offsets to the valid range."""

    def run(lengths=None, cu_seqlens=None):
        sequences = [
            None if x is None else torch.tensor(x, dtype=torch.int32, device=case.device) for x in (lengths, cu_seqlens)
        ]
        rows = (2, 6) if cu_seqlens is None else (12,)
        t = inputs(case.device, case.dtype, **dict.fromkeys(("q", "k", "v", "do"), (*rows, 2, 16)))
        options = (
            sequences[0],
            None,
            sequences[1],
            6 if cu_seqlens is None else 10,
            None,
            None,
            False,
            0.25,
            256,
            case.backend,
        )
        o, lse = torch.ops.fastlm.attention(t["q"], t["k"], t["v"], *options)
        return o, lse, *torch.ops.fastlm.attention_backward(t["do"], t["q"], t["k"], t["v"], o, lse, *options)

    for a, b in zip(run(**wrong), run(**right), strict=True):
        assert torch.equal(a, b)


def test_more_sequences_than_a_grid_has():
    q = torch.zeros(65536, 1, 1, 8)
    kernels = backends.launchers("triton", "attention")
    with pytest.raises(ValueError, match="at most 65535 sequences, got 65536"):
        kernels.attention_forward(q, q, q, None, None, None, 1, None, None, q, q[..., 0], False, 1.0, 256)


@pytest.mark.parametrize("case", cases("attention"))
def test_strided_inputs(case):
    t = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in tensors(case, 2, 21, 3, 64).items()}
    contiguous = {name: x.contiguous() for name, x in t.items()}
    expected = fastlm.attention(**contiguous, backend=case.backend)
    assert torch.equal(fastlm.attention(**t, backend=case.backend), expected)
    # Three different layouts: one is not aligned to 16 bytes, one is expanded.
    base = torch.cat([t["k"], t["k"]], -1)[..., 1:65].detach()
    mixed = {"q": t["q"], "k": base, "v": t["v"][:, :, :1].expand_as(base)}
    expected = fastlm.attention(*(x.contiguous() for x in mixed.values()), backend=case.backend)
    assert torch.equal(fastlm.attention(**mixed, backend=case.backend), expected)


@pytest.mark.parametrize("case", cases("attention"))
@pytest.mark.parametrize("shape", [(0, 5, 2, 64), (2, 0, 2, 64), (1, 1, 1, 64)], ids=str)
def test_empty_and_single(case, shape):
    q = torch.randn(shape, dtype=case.dtype, device=case.device).requires_grad_()
    o = fastlm.attention(q, q, q, causal=True, backend=case.backend)
    o.sum().backward()
    assert o.shape == q.grad.shape == shape
    assert torch.equal(o, q)


@pytest.mark.parametrize("case", cases("attention"))
def test_repeats_and_compiles(case):
    options = {"causal": True, "dropout_p": 0.1, "seed": torch.tensor([7], device=case.device)}
    t = tensors(case, 2, 50, 2, 64)
    assert_repeats(lambda **t: fastlm.attention(**t, **options, backend=case.backend), t, case.dtype)


@pytest.mark.parametrize("case", cases("attention"))
def test_opcheck(case):
    t = [x.requires_grad_() for x in tensors(case, 2, 9, 2, 32).values()]
    seed = torch.tensor([7], device=case.device)
    lengths = torch.tensor([9, 4], dtype=torch.int32, device=case.device)
    starts = torch.tensor([0, 5], dtype=torch.int32, device=case.device)
    assert_passes_opcheck("attention", *t, lengths, starts, None, 9, seed, None, False, 0.125, 230, case.backend)
    qkv = torch.stack([x.detach() for x in t], 2).requires_grad_()
    assert_passes_opcheck("attention_packed", qkv, lengths, None, None, 9, seed, seed, True, 0.125, 230, case.backend)
    packed = qkv.detach().flatten(0, 1).requires_grad_()
    cu_seqlens = torch.tensor([0, 9, 18], dtype=torch.int32, device=case.device)
    assert_passes_opcheck(
        "attention_packed", packed, None, None, cu_seqlens, 9, seed, seed, True, 0.125, 230, case.backend
    )


def test_second_derivative_raises():
    assert_differentiable_once(fastlm.attention, tensors(Case("reference", torch.float32, "cpu"), 1, 4, 1, 8))


Q = torch.zeros(2, 6, 3, 8)
ROWS = torch.zeros(7, 3, 8)
STARTS = torch.tensor([0, 3, 7], dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"q": Q[0]}, ValueError, r"q must have shape \(B, S, H, D\), or \(T, H, D\) with cu_seqlens, got \(6, 3, 8\)"),
        ({"k": Q.half()}, TypeError, "k must have the activations' dtype float32, got float16"),
        ({"v": Q[:, :5]}, ValueError, r"v must have shape \(2, 6, 3, 8\), got \(2, 5, 3, 8\)"),
        ({"k": torch.zeros(2, 6, 8, 3).transpose(2, 3)}, ValueError, "k must have stride 1 in its last dimension"),
        ({"lengths": torch.tensor([1, 2])}, TypeError, "lengths must be int32, got int64"),
        ({"lengths": torch.tensor([1], dtype=torch.int32)}, ValueError, r"lengths must have shape \(2,\), got \(1,\)"),
        ({"lengths": torch.tensor([1, 7], dtype=torch.int32)}, ValueError, r"lengths must lie in \[0, 7\), got 7"),
        ({"max_seqlen": 6}, ValueError, "max_seqlen goes with cu_seqlens"),
        ({"dropout_p": 0.1}, ValueError, "needs a seed"),
        ({"scale": 0.0}, ValueError, "scale must be above 0, got 0.0"),
        ({"scale": math.nan}, ValueError, "scale must be above 0, got nan"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        fastlm.attention(**({"q": Q, "k": Q, "v": Q} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"max_seqlen": None}, ValueError, "cu_seqlens needs max_seqlen"),
        ({"max_seqlen": 3}, ValueError, "max_seqlen must be at least the longest sequence, 4, got 3"),
        ({"cu_seqlens": STARTS + 1}, ValueError, "cu_seqlens must rise from 0 to the 7 rows given"),
        ({"cu_seqlens": STARTS.long()}, TypeError, "cu_seqlens must be int32, got int64"),
        ({"cu_seqlens": STARTS[:1]}, ValueError, r"cu_seqlens must have shape \(B \+ 1,\)"),
        ({"lengths": STARTS}, ValueError, "give lengths .* or cu_seqlens .* not both"),
        ({"qkv": torch.zeros(7, 2, 3, 8)}, ValueError, "qkv must have 3"),
        ({"qkv": torch.zeros(1, 7, 3, 3, 8)}, ValueError, r"with cu_seqlens, got \(1, 7, 3, 3, 8\)"),
    ],
)
def test_bad_packed_arguments(arguments, error, sentence):
    good = {"qkv": torch.zeros(7, 3, 3, 8), "cu_seqlens": STARTS, "max_seqlen": 4}
    with pytest.raises(error, match=sentence):
        fastlm.attention_packed(**(good | arguments))
