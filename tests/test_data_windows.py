"""GPT-1's windows, and the random orders that they are read in."""

from __future__ import annotations

import corpora
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlm.data import DataError, Shards, Windows, prepare
from fastlm.data.sampling import generator, generators, permute, shuffled


def epoch(windows: Windows, number: int) -> np.ndarray:
    """Returns each window of an epoch with its last target, (windows, S + 1), in the order of reading."""
    first, end = number * windows.windows, (number + 1) * windows.windows
    steps = range(first // windows.batch_size, -(-end // windows.batch_size))
    batches = [windows.batch(step) for step in steps]
    rows = np.concatenate([torch.cat([b["tokens"], b["targets"][:, -1:]], dim=1).numpy() for b in batches])
    skip = first - steps[0] * windows.batch_size
    return rows[skip : skip + windows.windows]


@corpora.no_deadline
@given(
    extra=st.integers(0, 200),
    length=st.integers(1, 20),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    number=st.integers(0, 10**6),
)
def test_an_epoch_is_the_text_once(extra, length, batch_size, seed, number):
    corpus = corpora.InMemory([2 * length + extra])
    windows = Windows(corpus, "train", length, batch_size, seed)
    rows = epoch(windows, number)
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(length + 1))  # contiguous
    targets = np.sort(rows[:, 1:].ravel())
    np.testing.assert_array_equal(targets, targets[0] + np.arange(windows.windows * length))  # each once, no gap
    assert targets[0] > corpora.FIRST and targets[-1] < corpora.FIRST + corpus.size
    assert corpus.size - len(targets) < 2 * length
    assert windows.batches_per_epoch == max(1, windows.windows // batch_size)


@corpora.no_deadline
@given(
    step=st.integers(0, 10**9), seed=st.integers(0, 2**63 - 1), batch_size=st.integers(1, 7), length=st.integers(1, 9)
)
def test_targets_follow_tokens(step, seed, batch_size, length):
    batch = Windows(corpora.InMemory([100]), "train", length, batch_size, seed).batch(step)
    assert batch.keys() == {"tokens", "targets"}
    for value in batch.values():
        assert value.shape == (batch_size, length) and value.dtype == torch.int64
    torch.testing.assert_close(batch["targets"], batch["tokens"] + 1, rtol=0, atol=0)


def test_epochs_and_seeds_differ():
    corpus = corpora.InMemory([10_000])
    windows = Windows(corpus, "train", 16, 8, seed=3)
    first, second, other = epoch(windows, 0), epoch(windows, 1), epoch(Windows(corpus, "train", 16, 8, seed=4), 0)
    for rows in (first, second, other):
        assert not np.array_equal(rows, np.sort(rows, axis=0))
        assert (
            abs(np.corrcoef(rows[:, 0], np.arange(len(rows)))[0, 1]) < 0.15
        )  # chance gives about 0.04 for 600 windows
    orders = [np.argsort(rows[:, 0]) for rows in (first, second, other)]
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])
    phases = {int(epoch(windows, number)[0, 0] - corpora.FIRST) % 16 for number in range(30)}
    assert len(phases) > 8


def test_batches_are_the_same_after_reopening(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(corpora.chapters(4)))
    tokenizer = corpora.tokenizer("bpe")
    prepared = prepare(tmp_path / "text.txt", tmp_path / "shards", tokenizer)
    windows = Windows(prepared, "train", 32, 4, seed=1)
    in_order = [windows.batch(step) for step in range(40)]
    for step in (39, 0, 17):
        again = Windows(Shards.open(tmp_path / "shards", tokenizer), "train", 32, 4, seed=1).batch(step)
        for name, value in again.items():
            torch.testing.assert_close(value, in_order[step][name], rtol=0, atol=0)
    text = tokenizer.decode(prepared.split("train").tokens.tolist())
    assert tokenizer.decode(in_order[5]["tokens"][2, 2:30].tolist()).strip() in text


def test_a_batch_may_be_anywhere():
    windows = Windows(corpora.InMemory([500]), "train", 8, 4, seed=0)
    assert windows.batch(10**15)["tokens"].shape == (4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 0}, "sequence_length: at least 1 expected, got 0"),
        ({"batch_size": 0}, "batch_size: at least 1 expected, got 0"),
        ({"seed": -1}, r"seed: an integer in \[0, 2\^63\) expected, got -1"),
        ({"sequence_length": 51}, "memory: 100 train tokens, but sequences of 51 tokens need 102; give more"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        Windows(corpora.InMemory([100]), "train", **{"sequence_length": 8, "batch_size": 2, "seed": 0} | arguments)
    assert isinstance(raised.value, DataError) == ("memory" in message)


@corpora.no_deadline
@given(size=st.integers(1, 3000), keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
def test_permute_is_a_permutation(size, keys):
    image = permute(np.arange(size), size, np.array(keys, np.uint64))
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


def test_orders_are_random():
    """Counts the positions of 16 items in 5,000 epochs: 256 cells, chi-squared with 225 degrees of freedom."""
    _, items = shuffled(0, 16 * 5000, 16, seed=0)
    counts = np.zeros((16, 16))
    np.add.at(counts, (np.tile(np.arange(16), 5000), items), 1)
    np.testing.assert_array_equal(np.sort(items.reshape(5000, 16)), np.tile(np.arange(16), (5000, 1)))
    chi_squared = ((counts - 5000 / 16) ** 2 / (5000 / 16)).sum()
    assert chi_squared < 225 + 5 * (2 * 225) ** 0.5


@corpora.no_deadline
@given(start=st.integers(0, 10**12), count=st.integers(1, 50), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_shuffled_depends_on_the_position_alone(start, count, size, seed):
    epochs, items = shuffled(start, count, size, seed)
    one = [shuffled(start + i, 1, size, seed) for i in range(count)]
    np.testing.assert_array_equal(epochs, [e[0] for e, _ in one])
    np.testing.assert_array_equal(items, [i[0] for _, i in one])
    np.testing.assert_array_equal(epochs, np.arange(start, start + count) // size)


@corpora.no_deadline
@given(seed=st.integers(0, 2**63 - 1), purpose=st.integers(0, 9), positions=st.lists(st.integers(0, 10**15)))
def test_one_moved_generator_is_many(seed, purpose, positions):
    for position, moved in zip(positions, generators(seed, purpose, positions), strict=True):
        made = generator(seed, purpose, position)
        # These draws leave half a word and half a buffer unused, which must not reach the next stream.
        assert moved.integers(0, 99, 3, np.uint32).tolist() == made.integers(0, 99, 3, np.uint32).tolist()
        assert moved.random(5).tolist() == made.random(5).tolist() and moved.binomial(40, 0.5) == made.binomial(40, 0.5)
