"""The CUDA C++ kernels of csrc/attention: every code path, the bytes they move, and what their launchers refuse."""

from __future__ import annotations

import pytest
import torch
from checks import Case, inputs
from test_attention import check
from test_attention_starts import check_results_of_right_padding

import fastlm
from fastlm import backends

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator counts bytes; it runs on the CPU")

BF16 = Case("cuda", torch.bfloat16, "cpu")
FP16 = Case("cuda", torch.float16, "cpu")


@pytest.mark.parametrize(
    ("case", "shape", "options"),
    [
        # The backward in one pass: CTAs of four warps, or of eight if four cannot hold all keys.
        (BF16, (2, 97, 1, 64), {"causal": True, "lengths": [97, 34]}),
        (BF16, (2, 168, 1, 64), {"lengths": [168, 70]}),
        (FP16, (1, 250, 1, 64), {"causal": True, "p": 0.0}),
        (FP16, (2, 129, 1, 32), {"causal": True}),
        (BF16, (1, 70, 2, 128), {"causal": True}),
        (FP16, (2, 128, 1, 128), {"lengths": [128, 60]}),
        # The backward in two passes, one over queries and one over keys.
        (BF16, (1, 272, 1, 64), {"causal": True}),
        (BF16, (2, 300, 1, 64), {"lengths": [290, 140]}),
        (FP16, (1, 264, 1, 64), {"p": 0.0}),
        (FP16, (2, 260, 1, 32), {"causal": True, "lengths": [260, 3]}),
        (BF16, (1, 150, 1, 128), {}),
        (FP16, (2, 140, 1, 128), {"causal": True, "lengths": [140, 0]}),
        # head_dims between the kernels' sizes, which are padded with columns of zeros.
        (BF16, (2, 40, 2, 8), {}),
        (FP16, (1, 270, 1, 40), {"causal": True}),
        (BF16, (1, 50, 2, 104), {}),
    ],
    ids=str,
)
def test_every_path(case, shape, options):
    check(case, shape, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_rows_in_two_passes(causal):
    """Each sequence of a packed batch has the results that it has alone."""
    lengths, longest = [5, 283, 0, 130], 283
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)
    qkv = inputs("cpu", torch.bfloat16, qkv=(sum(lengths), 3, 1, 64))["qkv"].requires_grad_()
    options = {"causal": causal, "backend": "cuda"}
    o = fastlm.attention_packed(qkv, cu_seqlens=cu_seqlens, max_seqlen=longest, **options)
    do = inputs("cpu", torch.bfloat16, do=tuple(o.shape))["do"]
    (dqkv,) = torch.autograd.grad(o, qkv, do)
    for rows in torch.arange(sum(lengths)).split(lengths):
        alone = torch.zeros(1, longest, 3, 1, 64, dtype=torch.bfloat16)
        alone[0, : len(rows)] = qkv.detach()[rows]
        alone.requires_grad_()
        o_alone = fastlm.attention_packed(alone, lengths=torch.tensor([len(rows)], dtype=torch.int32), **options)
        do_alone = torch.zeros_like(o_alone)
        do_alone[0, : len(rows)] = do[rows]
        (d_alone,) = torch.autograd.grad(o_alone, alone, do_alone)
        assert torch.equal(o_alone[0, : len(rows)], o[rows])
        assert torch.equal(d_alone[0, : len(rows)], dqkv[rows])
        assert not d_alone[0, len(rows) :].any()


@pytest.mark.parametrize(
    ("case", "rows", "sequences", "options"),
    [
        (BF16, 200, [(70, 130), (0, 5)], {"causal": True}),  # the backward in one pass, eight warps
        (FP16, 280, [(9, 271), (200, 33)], {"causal": False}),  # and in two passes
        (BF16, 140, [(100, 40)], {"causal": True, "dim": 128}),
    ],
    ids=str,
)
def test_padding_on_the_left(case, rows, sequences, options):
    check_results_of_right_padding(case, rows, sequences, **options)


@pytest.mark.parametrize("sequence", [100, 300])
def test_each_row_is_written_once_with_padding_on_the_left(sequence):
    heads, row = 2, 64 * 2
    sequences = {"starts": [sequence // 2, 3], "lengths": [20, sequence - 3]}
    options = {name: torch.tensor(values, dtype=torch.int32) for name, values in sequences.items()}
    qkv = inputs("cpu", torch.bfloat16, qkv=(2, sequence, 3, heads, 64))["qkv"].requires_grad_()
    traffic()
    o = fastlm.attention_packed(qkv, **options, backend="cuda")
    assert traffic()["written"] == 2 * heads * sequence * (row + 4)
    o.backward(torch.ones_like(o))
    delta = 0 if sequence == 100 else 4 * sum(sequences["lengths"])  # of the valid rows, in two passes
    assert traffic()["written"] == heads * (2 * sequence * 3 * row + delta)


def traffic() -> dict[str, int]:
    import _C_emulated

    return _C_emulated.take_traffic()


@pytest.mark.parametrize(
    # seen: rows of keys that a head's CTAs read in the forward. backward: rows of keys and of queries that they read in
    # the two passes of the backward; None if it has one pass.
    ("sequence", "causal", "seen", "backward"),
    [
        (128, False, 128, None),
        (200, False, 2 * 200, None),
        (256, True, 128 + 256, None),
        (300, False, 3 * 300, (3 * 300, 3 * 300)),
        (384, True, 128 + 256 + 384, (128 + 256 + 384, 384 + 256 + 128)),
    ],
)
def test_bytes(sequence, causal, seen, backward):
    heads, row = 3, 64 * 2
    options = {"causal": causal, "dropout_p": 0.1, "seed": torch.tensor([5]), "backend": "cuda"}
    qkv = inputs("cpu", torch.bfloat16, qkv=(1, sequence, 3, heads, 64))["qkv"].requires_grad_()
    traffic()
    o = fastlm.attention_packed(qkv, **options)
    moved = traffic()
    assert moved["read"] == heads * row * (sequence + 2 * seen)
    assert moved["written"] == heads * sequence * (row + 4)
    assert moved["accesses"] == (moved["read"] + heads * sequence * row) // 16 + heads * sequence
    o.backward(torch.ones_like(o))
    moved = traffic()
    if backward is None:
        assert moved["read"] == heads * sequence * (5 * row + 4)
        assert moved["written"] == heads * sequence * 3 * row
    else:
        keys, queries = backward
        assert moved["read"] == heads * (row * (3 * sequence + 2 * keys) + row * 2 * sequence + (2 * row + 8) * queries)
        assert moved["written"] == heads * sequence * (3 * row + 4)


def test_the_projection_is_read_and_its_gradient_written_in_place(monkeypatch):
    qkv = inputs("cpu", torch.float16, qkv=(2, 20, 3, 2, 64))["qkv"].requires_grad_()
    launchers, places = backends.launchers("cuda", "attention"), {}

    def spy(name):
        def run(*arguments):
            places[name] = [x.data_ptr() for x in arguments if isinstance(x, torch.Tensor)]
            launcher(*arguments)

        launcher = getattr(launchers, name)
        monkeypatch.setattr(launchers, name, run)

    spy("attention_forward"), spy("attention_backward")
    o = fastlm.attention_packed(qkv, backend="cuda")
    (dqkv,) = torch.autograd.grad(o.sum(), qkv)
    projections, gradients = ([x.data_ptr() for x in of.detach().unbind(2)] for of in (qkv, dqkv))
    assert places["attention_forward"][:3] == places["attention_backward"][1:4] == projections
    assert places["attention_backward"][6:9] == gradients  # after do, q, k, v, o and lse


@pytest.mark.parametrize("kind", ["address", "stride"])
def test_tensors_not_aligned_to_16_bytes_are_copied(kind):
    whole = inputs("cpu", torch.bfloat16, q=(2, 19, 3, 64))["q"]
    odd = torch.empty(whole.numel() + 1, dtype=whole.dtype)[1:].view(whole.shape)
    if kind == "stride":
        odd = torch.empty(*whole.shape[:-1], 65, dtype=whole.dtype)[..., :64]
    odd.copy_(whole)
    grads = []
    for x in (whole, odd):
        x.requires_grad_()
        fastlm.attention(x, x, x, backend="cuda").square().sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_unsupported_dtypes_and_head_dims_are_named():
    x = torch.zeros(1, 4, 2, 64)
    with pytest.raises(RuntimeError, match="it takes float16, bfloat16, not float32"):
        fastlm.attention(x, x, x, backend="cuda")
    for width, sentence in ((20, "a multiple of 8, not 20"), (136, "at most 128, not 136")):
        x = torch.zeros(1, 4, 2, width, dtype=torch.float16)
        with pytest.raises(RuntimeError, match=sentence):
            fastlm.attention(x, x, x, backend="cuda")


def test_launchers_check_what_kernels_assume():
    from _C_emulated import attention_forward

    x, lse = torch.zeros(2, 5, 3, 16, dtype=torch.float16), torch.zeros(2, 3, 5)
    starts = torch.tensor([0, 3, 5], dtype=torch.int32)

    def launch(**changes):
        arguments = {
            "q": x, "k": x, "v": x, "lengths": None, "starts": None, "cu_seqlens": None, "max_seqlen": 5,
            "seed": None, "first_sequence": None,
            "o": x.clone(), "lse": lse, "causal": False, "scale": 0.25, "keep": 256, "stream": 0,
        }  # fmt: skip
        return attention_forward(*(arguments | changes).values())

    launch()
    for changes, sentence in [
        ({"q": x.float()}, "float16 or bfloat16, got float32"),
        ({"q": x[0]}, r"q must have shape \(B, S, H, D\), or \(T, H, D\) with cu_seqlens, got 3 dimensions"),
        ({"q": x[..., :12]}, "a multiple of 8 up to 128, got 12"),
        ({"k": x.bfloat16()}, "k must be float16, got bfloat16"),
        ({"v": x[:, :4]}, r"v must have shape \(2, 5, 3, 16\), got \(2, 4, 3, 16\)"),
        (
            {"o": x.transpose(2, 3).contiguous().transpose(2, 3)},
            "o must be aligned to 16 bytes, with a last stride of 1",
        ),
        ({"lse": lse[:, :2]}, r"lse must have shape \(2, 3, 5\)"),
        ({"max_seqlen": 4}, "max_seqlen must be S = 5, got 4"),
        ({"lengths": starts}, r"lengths must have shape \(2,\), got \(3,\)"),
        ({"starts": starts[:2]}, "starts need lengths"),
        ({"lengths": starts[:2], "starts": starts}, r"starts must have shape \(2,\), got \(3,\)"),
        ({"scale": 0.0}, "scale must be above 0, got 0"),
        ({"keep": 200}, "there must be a seed where keep is less than 256"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            launch(**changes)
