"""BERT's sentence pairs and masks. Token i of the text is 5 + i, so that a batch shows which text it was made from."""

from __future__ import annotations

from typing import NamedTuple

import corpora
import numpy as np
import pytest
import torch
from corpora import SPECIALS, InMemory
from hypothesis import given
from hypothesis import strategies as st

from fastlm.data import DataError, SentencePairs, Shards, prepare
from fastlm.data.pairs import _Spans, _truncate

CLS, SEP, PAD, MASK = (SPECIALS[name] for name in ("[CLS]", "[SEP]", "[PAD]", "[MASK]"))

documents = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=2, max_size=5).filter(
    lambda found: any(len(document) > 1 for document in found)
)


class Pair(NamedTuple):
    """Holds a row of a batch, with A and B unmasked."""

    a: np.ndarray
    b: np.ndarray
    label: int
    positions: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray


def pairs_of(batch: dict[str, torch.Tensor]) -> list[Pair]:
    """Takes each row apart, and asserts the layout that every row must have."""
    found = []
    names = ("tokens", "segments", "lengths", "mlm_positions", "mlm_targets", "next_sentence_labels")
    rows = zip(*(batch[name].numpy() for name in names), strict=True)
    for tokens, segments, length, positions, targets, label in rows:
        count = int((targets != -100).sum())
        assert (targets[:count] >= 0).all() and (targets[count:] == -100).all() and (positions[count:] == 0).all()
        assert (np.diff(positions[:count]) > 0).all()
        assert count == min(max(1, round(length * 0.15)), length - 3)
        whole = tokens.copy()
        whole[positions[:count]] = targets[:count]
        assert whole[0] == CLS and whole[length - 1] == SEP and (whole[length:] == PAD).all()
        first_end = int(np.argmax(whole == SEP))
        assert not set(positions[:count]) & {0, first_end, length - 1}
        assert (segments == [0] * (first_end + 1) + [1] * (length - 1 - first_end) + [0] * (len(whole) - length)).all()
        a, b = whole[1:first_end], whole[first_end + 1 : length - 1]
        for part in (a, b):
            assert (
                len(part) and (part == part[0] + np.arange(len(part))).all()
            )  # a span of the text, without special tokens
        found.append(Pair(a, b, int(label), positions[:count], tokens[positions[:count]], targets[:count]))
    return found


def sizes_of_whole_sentences_in_other_documents(corpus: InMemory, token: int) -> set[int]:
    """Returns the sizes of all runs of whole sentences in the documents that do not hold `token`."""
    sizes = set()
    for number in range(len(corpus.documents) - 1):
        if number != corpus.document_of(token):
            bounds = corpus.sentences[corpus.documents[number] : corpus.documents[number + 1] + 1].tolist()
            sizes |= {end - begin for begin in bounds for end in bounds if end > begin}
    return sizes


def epoch(pairs: SentencePairs, number: int = 0) -> list[Pair]:
    assert pairs.batch_size == 1
    return [pairs_of(pairs.batch(number * pairs.pairs + i))[0] for i in range(pairs.pairs)]


@corpora.no_deadline
@given(
    documents=documents,
    length=st.integers(5, 60),
    batch_size=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 10**9),
)
def test_rows(documents, length, batch_size, seed, step):
    corpus = InMemory(*documents)
    pairs = SentencePairs(corpus, "train", length, batch_size, seed)
    batch = pairs.batch(step)
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert pairs.predictions == -(-length * 15 // 100)
    assert shapes == {
        "tokens": ((batch_size, length), torch.int64),
        "segments": ((batch_size, length), torch.int64),
        "lengths": ((batch_size,), torch.int32),
        "mlm_positions": ((batch_size, pairs.predictions), torch.int64),
        "mlm_targets": ((batch_size, pairs.predictions), torch.int64),
        "next_sentence_labels": ((batch_size,), torch.int64),
    }
    for pair in pairs_of(batch):
        documents_of_a = {corpus.document_of(token) for token in pair.a}
        documents_of_b = {corpus.document_of(token) for token in pair.b}
        assert len(documents_of_a) == len(documents_of_b) == 1
        assert (documents_of_a == documents_of_b) == (pair.label == 0)
        if pair.label == 0:
            assert pair.b[0] > pair.a[-1]
        if len(pair.a) + len(pair.b) < length - 3:  # nothing was truncated: whole sentences
            starts = {corpora.FIRST + int(start) for start in corpus.sentences}
            assert {pair.a[0], pair.a[-1] + 1, pair.b[0]} <= starts
            if pair.label == 0:
                assert pair.b[0] == pair.a[-1] + 1
                end = min(start for start in starts if start > pair.b[-1])
                # No other document has whole sentences of this size, so a random B would end inside a sentence too.
                assert end == pair.b[-1] + 1 or end - pair.b[0] not in sizes_of_whole_sentences_in_other_documents(
                    corpus, pair.b[0]
                )


def test_predictions_a_pair_are_the_originals():
    corpus = InMemory([9, 9], [9, 9])
    assert [SentencePairs(corpus, "train", s, 1, 0).predictions for s in (128, 512, 100, 20)] == [20, 77, 15, 3]


def test_no_text_is_left_out():
    """Without truncation and shortening, a token is in A in half of the epochs, in B with label 0 in a quarter."""
    generator = np.random.default_rng(0)
    corpus = InMemory(*[generator.integers(1, 9, 40).tolist() for _ in range(30)])
    pairs = SentencePairs(corpus, "train", 128, 1, 0)
    read = np.zeros(corpus.size + corpora.FIRST, int)
    for number in range(40):
        for pair in epoch(pairs, number):
            read[pair.a] += 1
            read[pair.b] += pair.label == 0
    assert (read[corpora.FIRST :] > 0).all()
    assert 0.67 < read[corpora.FIRST :].mean() / 40 < 0.75


def test_labels_are_a_fair_coin_and_new_each_epoch():
    corpus = InMemory(*[[7] * 50 for _ in range(20)])
    pairs = SentencePairs(corpus, "train", 64, 1, 5)
    labels = np.array([[pair.label for pair in epoch(pairs, number)] for number in range(12)])
    share, error = labels.mean(), 0.5 / labels.size**0.5
    assert labels.size > 1000 and abs(share - 0.5) < 4 * error
    assert len({tuple(row) for row in labels.tolist()}) == 12


def test_an_example_changes_from_epoch_to_epoch():
    """A document of two sentences has one passage, so only the label, a random B and the masks are drawn."""
    corpus = InMemory([20, 20], [20, 20], [20, 20])
    pairs = SentencePairs(corpus, "train", 48, 1, 0)
    assert pairs.pairs == 3
    seen: dict[int, set] = {}
    for number in range(40):
        for pair in epoch(pairs, number):
            assert len(pair.a) == 20 and len(pair.b) == 20
            seen.setdefault(int(pair.a[0]), set()).add((pair.label, int(pair.b[0]), tuple(pair.positions)))
    for drawn in seen.values():
        assert len(drawn) == 40 and {label for label, _, _ in drawn} == {0, 1}
        assert len({begin for label, begin, _ in drawn if label == 1}) >= 3  # sentences of two other documents


@corpora.no_deadline
@given(documents=documents, length=st.integers(5, 60), seed=st.integers(0, 99))
def test_no_length_depends_on_the_label(documents, length, seed):
    """Only the coin differs between two sets of draws: A is the same, and B has the same size for either label."""
    pairs = SentencePairs(InMemory(*documents), "train", length, 8, seed)
    generator = np.random.default_rng(seed)
    items, draws = generator.integers(0, pairs.pairs, 64), generator.random((64, 5))
    coin = 3
    draws[:, coin] = 0.9
    first, following, labels = pairs._pair(items, draws)
    draws[:, coin] = 0.1
    same, random, other_labels = pairs._pair(items, draws)
    assert (labels == 0).all() and (other_labels == 1).all()
    np.testing.assert_array_equal(same.begin, first.begin)
    np.testing.assert_array_equal(same.size, first.size)
    np.testing.assert_array_equal(random.size, following.size)
    assert (random.size > 0).all()


@pytest.mark.parametrize("length", [64, 128])
def test_lengths_do_not_tell_the_label(length):
    """Guesses labels from the lengths of A, of B and of both: fits on half of the pairs, measures on the others.

    The accuracy was 58% when a random B ended at the first sentence's end after the tokens that it replaced.
    """
    generator = np.random.default_rng(3)
    corpus = InMemory(*[generator.geometric(1 / 30, size).tolist() for size in generator.integers(2, 150, 300)])
    pairs = SentencePairs(corpus, "train", length, 512, 0)
    rows = []
    for step in range(60):
        batch = {name: value.numpy() for name, value in pairs.batch(step).items()}
        b = batch["segments"].sum(axis=1) - 1
        rows.append(np.stack([batch["lengths"] - 3 - b, b, batch["next_sentence_labels"]], axis=1))
    a, b, labels = np.concatenate(rows).T
    fitted = np.arange(len(labels)) % 2 == 0
    for cells in (a, b, a + b, a // 8 * 1000 + b // 8, a // 16 * 10**6 + b // 16 * 1000 + (a + b) // 4):
        _, cell = np.unique(cells, return_inverse=True)
        ones = np.bincount(cell[fitted], labels[fitted], minlength=cell.max() + 1)
        guess = 2 * ones > np.bincount(cell[fitted], minlength=cell.max() + 1)
        assert (guess[cell] == labels)[~fitted].mean() < 0.51


def test_ends_do_not_tell_the_label():
    """B ends at a sentence's end equally often for both labels, even with few and short documents."""
    generator = np.random.default_rng(4)
    corpus = InMemory(*[generator.integers(2, 40, size).tolist() for size in generator.integers(2, 8, 60)])
    pairs = SentencePairs(corpus, "train", 256, 1, 0)
    items, draws = generator.integers(0, pairs.pairs, 20_000), generator.random((20_000, 5))
    _, second, labels = pairs._pair(items, draws)
    whole = np.isin(second.begin + second.size, corpus.sentences)
    shares = [whole[labels == label].mean() for label in (0, 1)]
    assert 0.5 < shares[0] < 0.95 and abs(shares[0] - shares[1]) < 0.03
    assert np.isin(second.begin, corpus.sentences).all()


def test_a_long_document_among_short_ones_keeps_its_text():
    """The other documents have at most 9 tokens, so B has at most 9, and A has the rest."""
    corpus = InMemory([3] * 200, [4, 5], [4, 4], [3, 3])
    pairs = SentencePairs(corpus, "train", 33, 1, 0)
    found = [pair for number in range(4) for pair in epoch(pairs, number) if corpus.document_of(pair.a[0]) == 0]
    lengths = np.array([len(pair.a) + len(pair.b) for pair in found])
    assert max(len(pair.b) for pair in found) == 9 and (lengths == 30).mean() > 0.7


def test_the_label_does_not_show_in_the_length():
    generator = np.random.default_rng(1)
    corpus = InMemory(*[generator.integers(2, 40, size).tolist() for size in generator.integers(2, 60, 200)])
    pairs = SentencePairs(corpus, "train", 128, 1, 2)
    found = [pair for number in range(3) for pair in epoch(pairs, number)]
    lengths = {label: np.array([len(p.a) + len(p.b) for p in found if p.label == label]) for label in (0, 1)}
    error = sum(x.var() / len(x) for x in lengths.values()) ** 0.5
    assert len(found) > 1500 and abs(lengths[0].mean() - lengths[1].mean()) < 4 * error + 1
    full = {label: (x == 125).mean() for label, x in lengths.items()}
    assert abs(full[0] - full[1]) < 0.05 and full[0] > 0.6


def test_a_random_second_part_is_not_cut_short_by_the_end_of_its_document():
    corpus = InMemory(*[[3] * 20 for _ in range(50)])
    pairs = SentencePairs(corpus, "train", 33, 1, 0)
    found = [pair for number in range(8) for pair in epoch(pairs, number)]
    assert pairs.pairs == 100
    for label in (0, 1):
        full = np.array([len(p.a) + len(p.b) == 30 for p in found if p.label == label])
        assert abs(full.mean() - 0.91) < 4 * (0.09 * 0.91 / len(full)) ** 0.5  # 28, 29 and 30 are rounded up to 30


def test_a_tenth_is_shortened():
    corpus = InMemory(*[[1] * 2000 for _ in range(4)])
    found = [pair for number in range(20) for pair in epoch(SentencePairs(corpus, "train", 103, 1, 0), number)]
    lengths = np.array([len(p.a) + len(p.b) for p in found])
    short = lengths < 100
    assert (
        abs(short.mean() - 0.1) < 4 * (0.09 / len(lengths)) ** 0.5 + 0.002
    )  # the length is drawn from 2 to 100, and 100 is not short
    assert abs(lengths[short].mean() - 50.5) < 4 * (99 / 12**0.5) / short.sum() ** 0.5


def test_masks():
    """80% become [MASK], 10% a random token, 10% stay; all positions are equally frequent; within four errors."""
    corpus = InMemory(*[[25] * 40 for _ in range(10)])
    pairs = SentencePairs(corpus, "train", 53, 64, 0)
    found = [pair for step in range(60) for pair in pairs_of(pairs.batch(step))]
    inputs, targets = (np.concatenate([getattr(p, name) for p in found]) for name in ("inputs", "targets"))
    n = len(inputs)
    assert n > 25_000
    drawn = (inputs != MASK) & (inputs != targets)  # of 10,005 possible random tokens, one is [MASK] and one the target
    for share, expected in ((inputs == MASK, 0.8), (inputs == targets, 0.1), (drawn, 0.1)):
        assert abs(share.mean() - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 0.1 * 2 / 10_005
    random = inputs[drawn]
    assert random.min() >= 0 and random.max() < corpus.vocab_size
    assert abs(random.mean() - corpus.vocab_size / 2) < 4 * corpus.vocab_size / 12**0.5 / len(random) ** 0.5
    full = [p for p in found if len(p.a) == len(p.b) == 25]  # 8 of the 50 positions 1 to 25 and 27 to 51 are predicted
    counts = np.bincount(np.concatenate([p.positions for p in full]), minlength=53)
    share = counts[[*range(1, 26), *range(27, 52)]] / len(full)
    assert np.abs(share - 0.16).max() < 4.5 * (0.16 * 0.84 / len(full)) ** 0.5


@corpora.no_deadline
@given(a=st.integers(1, 60), b=st.integers(1, 60), most=st.integers(2, 80), seed=st.integers(0, 99))
def test_truncation_is_the_originals(a, b, most, seed):
    size_a, size_b = a, b
    while size_a + size_b > most:  # truncate_seq_pair of BERT's create_pretraining_data.py
        if size_a > size_b:
            size_a -= 1
        else:
            size_b -= 1
    streams = [np.random.default_rng(seed)]
    first, second = _truncate(_span(100, a), _span(500, b), most, streams)
    assert (first.size[0], second.size[0]) == (size_a, size_b)
    assert 100 <= first.begin[0] <= 100 + a - size_a and 500 <= second.begin[0] <= 500 + b - size_b


def test_truncation_takes_from_both_ends():
    streams = [np.random.default_rng(i) for i in range(4000)]
    begin, size = np.zeros(4000, np.int64), np.full(4000, 60)
    first, _ = _truncate(_Spans(begin, size), _Spans(begin, np.full(4000, 10)), 50, streams)
    assert (first.size == 40).all()
    assert (
        abs(first.begin.mean() - 10) < 4 * 5**0.5 / 4000**0.5 and abs(first.begin.var() - 5) < 0.5
    )  # binomial(20, 1/2)


def _span(begin: int, size: int) -> _Spans:
    return _Spans(np.array([begin]), np.array([size]))


def test_batches_depend_on_seed_and_step_alone():
    corpus = InMemory(*[[9] * 30 for _ in range(5)])
    pairs = SentencePairs(corpus, "train", 64, 4, seed=1)
    in_order = [pairs.batch(step) for step in range(30)]
    for step in (29, 3):
        assert _equal(SentencePairs(corpus, "train", 64, 4, seed=1).batch(step), in_order[step])
    assert not _equal(SentencePairs(corpus, "train", 64, 4, seed=2).batch(3), in_order[3])
    twice = SentencePairs(corpus, "train", 64, 8, seed=1).batch(1)
    assert _equal({name: value[:4] for name, value in twice.items()}, in_order[2])
    assert pairs.batch(10**15)["tokens"].shape == (4, 64)


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_real_text(tmp_path):
    (tmp_path / "text.jsonl").write_text("")
    for i, chapter in enumerate(corpora.chapters(6)):
        (tmp_path / f"{i}.txt").write_text(chapter.replace("\n", "\n\n"))
    tokenizer = corpora.tokenizer("wordpiece")
    files = [tmp_path / f"{i}.txt" for i in range(6)]
    prepare(files, tmp_path / "out", tokenizer, document="file", validation_fraction=0.4)
    for split in ("train", "validation"):
        batches = [
            SentencePairs(Shards.open(tmp_path / "out", tokenizer), split, 96, 8, 0).batch(step) for step in (2, 2, 3)
        ]
        assert _equal(batches[0], batches[1]) and not _equal(batches[0], batches[2])
        chapters = [tokenizer.encode(chapter) for chapter in corpora.chapters(6)]
        for row in range(8):
            a = batches[0]["tokens"][row].clone()
            count = int((batches[0]["mlm_targets"][row] != -100).sum())
            a[batches[0]["mlm_positions"][row, :count]] = batches[0]["mlm_targets"][row, :count]
            a = a[1 : int((a == SEP).nonzero()[0])].tolist()
            assert any(a == chapter[i : i + len(a)] for chapter in chapters for i in range(len(chapter)))


@pytest.mark.parametrize(
    ("corpus", "warned"),
    [
        ([[9]] * 271 + [[9, 9]] * 14, "271 of 285 train documents (91% of the tokens) are one sentence"),
        ([[9]] * 6 + [[99, 99]] * 5, "6 of 11 train documents (5% of the tokens) are one sentence"),
        ([[40]] + [[9, 9]] * 10, "1 of 11 train documents (18% of the tokens) are one sentence"),
        ([[9]] * 5 + [[99, 99]] * 5, None),
        ([[9, 9]] * 5, None),
    ],
)
def test_lone_sentences_are_warned_of(corpus, warned):
    pairs = SentencePairs(InMemory(*corpus), "train", 32, 2, 0)
    assert len(pairs.warnings) == (warned is not None)
    for sentence in pairs.warnings:
        assert sentence.startswith(f"memory: {warned}, which gives no pair")
        assert "in a .txt, if blank lines end only paragraphs, by --document file; in a .jsonl" in sentence
        assert f"; {pairs.pairs} pairs are left" in sentence


@pytest.mark.parametrize(
    ("corpus", "arguments", "message"),
    [
        (
            [[5, 5], [5]],
            {"sequence_length": 4},
            r"sequence_length: at least 5 expected \(\[CLS\] A \[SEP\] B \[SEP\]\)",
        ),
        ([[5, 5], [5]], {"batch_size": 0}, "batch_size: at least 1 expected, got 0"),
        ([[5, 5], [5]], {"masked_fraction": 0}, "masked_fraction: above 0 and below 1 expected, got 0"),
        ([[5, 5], [5]], {"seed": -2}, r"seed: an integer in \[0, 2\^63\) expected, got -2"),
        ([[5, 5]], {}, "memory: one train document, but sentence pairs need two or more; .* in a .jsonl each line"),
        ([[5], [5]], {}, "memory: no train document has two sentences"),
    ],
)
def test_bad_arguments(corpus, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SentencePairs(InMemory(*corpus), "train", **{"sequence_length": 9, "batch_size": 2, "seed": 0} | arguments)


def test_shards_of_gpt1(monkeypatch):
    monkeypatch.setattr(InMemory, "kind", "bpe")
    with pytest.raises(DataError, match="^memory: made with a bpe tokenizer, but sentence pairs need a wordpiece one$"):
        SentencePairs(InMemory([5, 5], [5]), "train", 9, 2, 0)
