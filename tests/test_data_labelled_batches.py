"""Batches of labelled examples in three layouts: the same sequences, losses and gradients; exact resume."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlm import models
from fastlm.data.corpus import DataError
from fastlm.data.inputs import Encoded
from fastlm.data.labelled.batches import LAYOUTS, LabelledBatches, collate
from fastlm.data.labelled.encode import Builder, Encodings
from fastlm.models import PRESETS
from fastlm.nn import ChoiceHead, ClassificationHead, SequenceLMHead, SpanHead, TaggingHead

VOCAB = 50


def made(lengths, per_item=1, kind="classification", seed=0) -> Encodings:
    """Returns items of random tokens; `lengths` has a length per sequence."""
    drawn, builder = np.random.default_rng(seed), Builder(per_item)
    for item in range(len(lengths) // per_item):
        sequences = []
        for size in lengths[item * per_item : (item + 1) * per_item]:
            tokens = drawn.integers(5, VOCAB, size).tolist()
            sequences.append(Encoded(tokens, int(drawn.integers(1, size + 1)), int(drawn.integers(size)), 0))
        size = len(sequences[0].tokens)
        targets = {
            "classification": {"labels": int(drawn.integers(3))},
            "choice": {"choice_labels": int(drawn.integers(per_item))},
            "span": dict(zip(("span_starts", "span_ends"), drawn.integers(0, size, 2).tolist(), strict=True)),
            "tagging": {"tag_targets": np.where(drawn.random(size) < 0.5, drawn.integers(0, 3, size), -100).tolist()},
        }
        builder.add(sequences, item, 0, **targets[kind])
    return builder.encodings()


def by_sequence(batch: dict, name: str) -> list[list[int]]:
    """Returns an entry of a batch per sequence, without padding."""
    if "cu_seqlens" in batch:
        return [part.tolist() for part in batch[name].split(batch["cu_seqlens"].diff().tolist())]
    return [row[:length] for row, length in zip(batch[name].tolist(), batch["lengths"].tolist(), strict=True)]


LENGTHS = st.lists(st.integers(1, 12), min_size=6, max_size=18)


@given(LENGTHS, st.sampled_from([1, 2, 3]), st.sampled_from(["classification", "tagging"]))
def test_padded_and_packed_batches_hold_the_same(lengths, per_item, kind):
    per_item = 1 if kind == "tagging" else per_item
    encodings = made(lengths[: len(lengths) // per_item * per_item], per_item, kind)
    items = np.arange(len(encodings))[::-1].copy()
    options = {"pad": 1, "rows": True, "segments": True, "next_tokens": True}
    packed, padded = collate(encodings, items, None, **options), collate(encodings, items, 13, **options)
    sequences = (items[:, None] * per_item + np.arange(per_item)).ravel()
    own = [encodings.tokens[encodings.starts[s] : encodings.starts[s + 1]].tolist() for s in sequences]
    for batch in (packed, padded):
        assert by_sequence(batch, "tokens") == own
        assert by_sequence(batch, "targets") == [[*tokens[1:], -100] for tokens in own]
        segments = [[int(i >= encodings.second[s]) for i in range(len(t))] for s, t in zip(sequences, own, strict=True)]
        assert by_sequence(batch, "segments") == segments
        read = batch["tokens"].flatten()[batch["rows"].flatten()].tolist()
        assert read == [tokens[encodings.rows[s]] for s, tokens in zip(sequences, own, strict=True)]
        assert batch["rows"].shape == ((len(items),) if per_item == 1 else (len(items), per_item))
    assert (padded["tokens"] == 1).sum() == len(own) * 13 - sum(map(len, own))
    if kind == "tagging":
        assert by_sequence(packed, "tag_targets") == by_sequence(padded, "tag_targets")
        assert (padded["tag_targets"] >= 0).sum() == (encodings.targets["tag_targets"] >= 0).sum()
    else:
        assert packed["labels"].tolist() == padded["labels"].tolist() == encodings.targets["labels"][items].tolist()


HEADS = {
    "classification": lambda: {"classes": ClassificationHead(16, 3)},
    "choice": lambda: {"choice": ChoiceHead(16)},
    "span": lambda: {"span": SpanHead(16)},
    "tagging": lambda: {"tags": TaggingHead(16, 3)},
}


CASES = [*(("bert_tiny", kind) for kind in HEADS), ("gpt1_tiny", "classification"), ("gpt1_tiny", "choice")]


@pytest.mark.parametrize(("preset", "kind"), CASES)
@settings(max_examples=3, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_all_layouts_give_the_same_loss_and_gradients(preset, kind, lengths, seed):
    causal = preset == "gpt1_tiny"
    per_item = 3 if kind == "choice" else 1
    encodings = made(lengths[: len(lengths) // per_item * per_item], per_item, kind, seed)
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCAB, "context": 16, "layers": 1, "hidden": 16, "heads": 2, "intermediate": 16}
    heads = HEADS[kind]() | ({"lm": SequenceLMHead()} if causal else {})
    model = models.build(type(PRESETS[preset])(**sizes), heads).double().eval()
    found = {}
    for layout in LAYOUTS:
        rows = kind in ("classification", "choice")
        options = {"rows": rows, "segments": not causal, "next_tokens": causal}
        batches = LabelledBatches(encodings, len(encodings), 0, layout=layout, train=True, **options)
        model.zero_grad()
        loss = model(**batches.batch(0)).loss
        loss.backward()
        found[layout] = loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for layout in ("binned", "packed"):
        assert found[layout][0] == pytest.approx(found["padded"][0], rel=1e-12)
        torch.testing.assert_close(found[layout][1], found["padded"][1], rtol=1e-9, atol=1e-12)


RAGGED = made(np.random.default_rng(1).integers(2, 40, 203).tolist())


def items_of(batches: LabelledBatches, step: int) -> list[int]:
    """Returns the items of a training batch, found by their tokens."""
    each = np.split(RAGGED.tokens, RAGGED.starts[1:-1])
    known = {tuple(tokens.tolist()): item for item, tokens in enumerate(each)}
    return [known[tuple(tokens)] for tokens in by_sequence(batches.batch(step), "tokens")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_epoch_reads_each_item_at_most_once_and_drops_the_rest(layout):
    batches = LabelledBatches(RAGGED, 8, 3, layout=layout, train=True)
    assert batches.batches_per_epoch == 203 // 8
    epochs = []
    for epoch in range(2):
        steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
        items = [item for step in steps for item in items_of(batches, step)]
        assert len(items) == len(set(items)) == 200
        epochs.append(items)
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_depends_on_seed_and_step_alone(layout):
    first, second = (LabelledBatches(RAGGED, 8, 3, layout=layout, train=True) for _ in range(2))
    in_order = [first.batch(step) for step in range(60)]
    for step in (59, 3, 30, 0):
        again = second.batch(step)
        assert again.keys() == in_order[step].keys()
        assert all(torch.equal(again[name], in_order[step][name]) for name in again)
    other = LabelledBatches(RAGGED, 8, 4, layout=layout, train=True)
    assert items_of(other, 0) != items_of(first, 0)


def test_binned_batches_hold_little_padding_and_it_is_counted():
    padded, binned, packed = (LabelledBatches(RAGGED, 8, 3, layout=layout, train=True) for layout in LAYOUTS)
    assert packed.padding == 0.0 and binned.padding < padded.padding / 2
    for batches in (padded, binned):
        made = [batches.batch(step) for step in range(batches.batches_per_epoch)]
        real, laid_out = sum(int(b["lengths"].sum()) for b in made), sum(b["tokens"].numel() for b in made)
        dropped = 0.01 if batches is padded else 1e-12  # "padded" also counts the items that an epoch drops
        assert batches.padding == pytest.approx(1 - real / laid_out, abs=dropped)
        assert f"{batches.padding:.1%}" in batches.warnings[0] and "203 inputs" in batches.warnings[0]
    widths = {b["tokens"].shape[1] for b in made}
    assert all(width % 8 == 0 or width == RAGGED.lengths.max() for width in widths) and len(widths) > 2


def test_binned_batches_come_in_a_random_order_of_lengths():
    batches = LabelledBatches(RAGGED, 8, 3, layout="binned", train=True)
    widths = [batches.batch(step)["tokens"].shape[1] for step in range(batches.batches_per_epoch)]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_validation_keeps_the_order_and_the_incomplete_last_batch():
    batches = LabelledBatches(RAGGED, 8, 3, layout="binned", train=False)
    assert batches.batches_per_epoch == 26
    items = torch.cat([batches.batch(step)["items"] for step in range(26)])
    assert items.tolist() == list(range(203)) and len(batches.batch(25)["tokens"]) == 3


def test_too_few_items_for_a_batch_is_one_sentence():
    with pytest.raises(DataError, match=r"^a.tsv: 203 inputs do not fill one batch of 256, .* smaller batch_size$"):
        LabelledBatches(RAGGED, 256, 0, layout="packed", train=True, source="a.tsv")
    LabelledBatches(RAGGED, 256, 0, layout="packed", train=False)
