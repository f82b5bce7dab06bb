"""The keep mask: Philox-4x32-7 against its paper's test vectors, and the layouts spelled out one element at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlm import cpu_dropout, dropout
from fastlm.dropout import attention_mask, draw_seeds, keep_count, row_mask

SEEDS = (0, 1, -1, 0x0123456789ABCDEF, -(2**63))


def philox(key: int, counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Philox-4x32-7 (Salmon et al., SC 2011, figure 4) in Python's integers."""
    key0, key1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    for _ in range(7):
        high0, low0 = divmod(0xD2511F53 * c0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) % (1 << 32), (key1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


# Random123's kat_vectors, "philox4x32 7": counter, key, result.
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
    words = philox(seed, (c // 16, n % 2**32, n // 2**32, 0))
    return words[c % 16 // 4] >> 8 * (c % 4) & 0xFF


def attention_number(seed: int, head: int, i: int, j: int) -> int:
    """The eight bits, one of each plane, of query i and key j of sequence and head number `head`."""
    # In a tile, call r has the rows {2r, 2r + 1, 2r + 8, 2r + 9}, and c the same columns.
    rows = {2 * r + offset: (r, number) for r in range(4) for number, offset in enumerate((0, 1, 8, 9))}
    (r, ii), (c, jj) = rows[i % 16], rows[j % 16]
    words = philox(seed, (4 * (j // 16) + c, 4 * (i // 16) + r, head, 1))
    planes = [words[p // 2] >> 16 * (p % 2) & 0xFFFF for p in range(8)]
    return sum((plane >> 4 * ii + jj & 1) << p for p, plane in enumerate(planes))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 16), (5, 37)])
def test_row_masks_byte_by_byte(seed, rows, columns):
    numbers = torch.tensor([[row_byte(seed, n, c) for c in range(columns)] for n in range(rows)])
    for keep in (1, 77, 128, 230, 255):
        assert torch.equal(row_mask(torch.tensor([seed]), rows, columns, keep), numbers < keep)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 20), (1, 2, 32, 16)])
def test_attention_masks_bit_by_bit(seed, shape):
    batch, heads, queries, keys = shape
    numbers = torch.tensor(
        [
            [[attention_number(seed, head, i, j) for j in range(keys)] for i in range(queries)]
            for head in range(batch * heads)
        ]
    ).view(shape)
    for keep in (1, 77, 128, 230, 255):
        assert torch.equal(attention_mask(torch.tensor([seed]), *shape, keep), numbers < keep)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("keep", [1, 77, 128, 230, 255])
def test_the_cpu_s_masks_are_these(seed, keep):
    """In the forward, again in the backward, and where the forward's mask did not wait."""
    seeds = torch.tensor([seed])
    rows, scores = row_mask(seeds, 5, 37, keep).float(), attention_mask(seeds, 3, 2, 33, 33, keep)
    for last_use in (False, True, True):
        assert torch.equal(cpu_dropout.row_mask(seeds, 5, 37, keep, last_use=last_use), rows)
        part = cpu_dropout.attention_mask(seeds, 1, 2, 2, 33, keep, last_use=last_use)
        assert torch.equal(part, scores[1:])


def test_masks_that_wait_are_bounded(monkeypatch):
    monkeypatch.setattr(cpu_dropout, "KEPT_BYTES", 2 * 8 * 16)
    waiting = cpu_dropout._waiting
    waiting.clear()
    for seed in range(4):
        cpu_dropout.row_mask(torch.tensor([seed]), 8, 16, 128, last_use=False)
    assert [key[1] for key in waiting] == [2, 3]  # the last ones
    cpu_dropout.row_mask(torch.tensor([3]), 8, 16, 128, last_use=True)
    assert [key[1] for key in waiting] == [2]
    waiting.clear()


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


@pytest.mark.parametrize("keep", [26, 128, 230])
def test_the_share_of_what_is_kept(keep):
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
def test_a_probability_that_cannot_be_had_is_an_error(p):
    with pytest.raises(ValueError, match="dropout_p"):
        keep_count(p)


def test_seeds_come_from_torchs_generator():
    torch.manual_seed(5)
    first = draw_seeds(3)
    torch.manual_seed(5)
    assert first.dtype == torch.int64 and torch.equal(draw_seeds(3), first) and len(set(first.tolist())) == 3
