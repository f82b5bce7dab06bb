"""Dropout masks: Philox-4x32-7 against published vectors, and both layouts against an element-by-element version."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlm import cpu_dropout, dropout
from fastlm.dropout import attention_mask, draw_seeds, keep_count, row_mask

FIRST = (0, 2**32 // 3, 2**32 - 1, 3 * 2**40 + 5)  # with 3 heads, first * heads of the second is 2^32 - 1
SEEDS = (0, 1, -1, 0x0123456789ABCDEF, -(2**63))


def philox(key: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Computes Philox-4x32-7 (Salmon et al., SC 2011, figure 4) in Python's integers."""
    key0, key1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    for _ in range(7):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) % (1 << 32), (key1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


# From Random123's file kat_vectors, lines "philox4x32 7": counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), 0, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (
        (0xFFFFFFFF,) * 4,
        0xFFFFFFFFFFFFFFFF,
        (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_published_vectors(counter, key, result):
    assert philox(key, counter) == result
    seed = torch.tensor([key - (key >> 63 << 64)])
    c0, c1, c2 = (torch.tensor([c]) for c in counter[:3])
    words = dropout._philox(seed, c0, c1, c2, counter[3])
    assert tuple(int(word) for word in words) == result


def row_byte(seed: int, n: int, c: int) -> int:
    """Returns the byte that decides about column c of row n: kept if it is less than `keep`."""
    words = philox(seed ^ n // 2**32 << 32, (c // 16, n % 2**32, 0, 0))
    return words[c % 16 // 4] >> 8 * (c % 4) & 0xFF


def attention_byte(seed: int, head: int, i: int, j: int) -> int:
    """Returns the byte that decides about query i and key j: kept if it is less than `keep`. `head` counts the heads of
    all sequences. The byte's eight bits come from the eight 16-bit planes of one Philox call."""
    # In a 16 x 16 tile, call (r, c) serves rows {2r, 2r + 1, 2r + 8, 2r + 9} and columns {2c, 2c + 1, 2c + 8, 2c + 9}.
    calls = {2 * r + offset: (r, place) for r in range(4) for place, offset in enumerate((0, 1, 8, 9))}
    (r, ii), (c, jj) = calls[i % 16], calls[j % 16]
    key = seed ^ head // 2**32 << 32
    words = philox(key, (4 * (j // 16) + c, 4 * (i // 16) + r, head % 2**32, 1))
    planes = [words[p // 2] >> 16 * (p % 2) & 0xFFFF for p in range(8)]
    return sum((plane >> 4 * ii + jj & 1) << p for p, plane in enumerate(planes))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 16), (5, 37)])
@pytest.mark.parametrize("first", FIRST)
def test_row_masks_byte_by_byte(seed, rows, columns, first):
    bytes_ = torch.tensor([[row_byte(seed, first + n, c) for c in range(columns)] for n in range(rows)])
    for keep in (1, 77, 128, 230, 255):
        mask = row_mask(torch.tensor([seed]), rows, columns, keep, torch.tensor([first]))
        assert torch.equal(mask, bytes_ < keep)
        assert first > 0 or torch.equal(mask, row_mask(torch.tensor([seed]), rows, columns, keep))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 20), (1, 2, 32, 16)])
@pytest.mark.parametrize("first", FIRST)
def test_attention_masks_bit_by_bit(seed, shape, first):
    batch, heads, queries, keys = shape
    bytes_ = torch.tensor(
        [
            [[attention_byte(seed, head, i, j) for j in range(keys)] for i in range(queries)]
            for head in range(first * heads, (first + batch) * heads)
        ]
    ).view(shape)
    for keep in (1, 77, 128, 230, 255):
        mask = attention_mask(torch.tensor([seed]), *shape, keep, torch.tensor([first]))
        assert torch.equal(mask, bytes_ < keep)
        assert first > 0 or torch.equal(mask, attention_mask(torch.tensor([seed]), *shape, keep))


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep", [1, 77, 128, 230, 255])
def test_the_cpu_backend_draws_the_same_masks(seed, keep, first):
    """In the forward, in the backward, and in a backward for which the forward's mask is no longer kept."""
    seeds, firsts = torch.tensor([seed]), torch.tensor([first])
    rows = row_mask(seeds, 5, 37, keep, firsts).float()
    scores = attention_mask(seeds, 2, 3, 33, 33, keep, firsts)
    for last_use in (False, True, True):
        assert torch.equal(cpu_dropout.row_mask(seeds, 5, 37, keep, firsts, last_use=last_use), rows)
        assert torch.equal(cpu_dropout.attention_mask(seeds, first, 2, 3, 33, keep, last_use=last_use), scores)


def test_masks_kept_for_the_backward_are_bounded(monkeypatch):
    kept = cpu_dropout._kept
    kept.clear()
    monkeypatch.setattr(cpu_dropout, "KEPT_BYTES", 2 * 8 * 16)
    for seed in range(4):
        cpu_dropout.row_mask(torch.tensor([seed]), 8, 16, 128, None, last_use=False)
    assert [key[1] for key in kept] == [2, 3]
    cpu_dropout.row_mask(torch.tensor([3]), 8, 16, 128, None, last_use=True)
    assert [key[1] for key in kept] == [2]
    kept.clear()


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(0, 2), heads=st.integers(1, 3), queries=st.integers(1, 40), keys=st.integers(1, 40),
    keep=st.integers(1, 255), seed=st.integers(-(2**63), 2**63 - 1),
)  # fmt: skip
def test_an_element_does_not_depend_on_the_shape_around_it(batch, heads, queries, keys, keep, seed):
    mask = attention_mask(torch.tensor([seed]), batch, heads, queries, keys, keep)
    whole = attention_mask(torch.tensor([seed]), 2, heads, 40, 40, keep)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, whole[:batch, :, :queries, :keys])
    rows = row_mask(torch.tensor([seed]), queries, keys, keep)
    assert torch.equal(rows, row_mask(torch.tensor([seed]), 40, 40, keep)[:queries, :keys])


@settings(deadline=None, max_examples=25)
@given(
    cut=st.integers(0, 7), heads=st.integers(1, 3), first=st.integers(0, 2**60), seed=st.integers(-(2**63), 2**63 - 1)
)
def test_parts_of_a_batch_draw_what_the_whole_draws(cut, heads, first, seed):
    seed, first = torch.tensor([seed]), torch.tensor([first])
    whole = row_mask(seed, 7, 20, 128, first)
    assert torch.equal(
        whole, torch.cat([row_mask(seed, cut, 20, 128, first), row_mask(seed, 7 - cut, 20, 128, first + cut)])
    )
    whole = attention_mask(seed, 7, heads, 5, 18, 128, first)
    parts = (cut, first), (7 - cut, first + cut)
    assert torch.equal(whole, torch.cat([attention_mask(seed, n, heads, 5, 18, 128, start) for n, start in parts]))


@pytest.mark.parametrize("keep", [26, 128, 230])
def test_the_fraction_that_is_kept(keep):
    p = keep / 256
    for mask in (row_mask(torch.tensor([3]), 512, 512, keep), attention_mask(torch.tensor([3]), 2, 2, 256, 256, keep)):
        count = mask.numel()
        assert abs(mask.double().mean().item() - p) < 4 * (p * (1 - p) / count) ** 0.5
        # Neighbours in either direction are independent.
        for a, b in ((mask[..., 1:], mask[..., :-1]), (mask[..., 1:, :], mask[..., :-1, :])):
            both = (a & b).double().mean().item()
            assert abs(both - p * p) < 5 * (p * p * (1 - p * p) / count) ** 0.5


def test_the_two_kinds_of_mask_share_no_counter():
    rows = row_mask(torch.tensor([3]), 64, 64, 128)
    assert 0.4 < (rows == attention_mask(torch.tensor([3]), 1, 1, 64, 64, 128)[0, 0]).double().mean() < 0.6


def test_keep_count_rounds_to_a_256th():
    assert [keep_count(p) for p in (0.0, 0.1, 0.5, 1 / 256, 255 / 256)] == [256, 230, 128, 255, 1]


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan"), 0.001, 0.9999])
def test_impossible_probabilities_raise(p):
    with pytest.raises(ValueError, match="dropout_p"):
        keep_count(p)


def test_seeds_come_from_torchs_generator():
    torch.manual_seed(5)
    first = draw_seeds(3)
    torch.manual_seed(5)
    assert first.dtype == torch.int64 and torch.equal(draw_seeds(3), first) and len(set(first.tolist())) == 3
