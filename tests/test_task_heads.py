"""The heads of fine-tuning by themselves: losses, masks, ignored targets, L3, errors. Parity has a file of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from runs import one_thread
from torch import Tensor

from fastlm.dropout import LEVELS, keep_count, row_mask
from fastlm.models import PRESETS, Model, build
from fastlm.nn import (
    CausalLMHead,
    ChoiceHead,
    ClassificationHead,
    Head,
    RegressionHead,
    SequenceLMHead,
    SpanHead,
    TaggingHead,
)

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
BATCH, LENGTH, E = 4, 10, 32
P = 0.25
KEEP = keep_count(P)
LENGTHS = torch.tensor([LENGTH, 6, 3, 1], dtype=torch.int32)
FIRST = torch.arange(BATCH) * LENGTH
TOKENS = torch.randint(40, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))
TARGETS = TOKENS.roll(-1, 1).where(torch.arange(LENGTH) < LENGTHS[:, None], -100)
WITHOUT = {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}


def make(heads: dict[str, Head], preset: str = "bert_tiny", **options) -> Model:
    """Returns a small model in float64 whose trunk drops nothing; its weights are large enough for unequal logits."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "context": 16, "hidden": E, "intermediate": 64, "initializer_range": 0.2}
    return build(replace(PRESETS[preset], **sizes, **WITHOUT, **options), heads).double()


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def dropped(x: Tensor, seed: Tensor, first_row: int) -> Tensor:
    mask = row_mask(seed, *x.flatten(0, -2).shape, KEEP, torch.tensor([first_row])).view(x.shape)
    return x * mask * (LEVELS / KEEP)


# Losses ---------------------------------------------------------------------------------------------------------


def test_class_weights_are_torch_s_and_ignored_examples_count_nothing():
    weights, labels = [0.5, 3.0, 1.0], torch.tensor([1, -100, 0, 2])
    model = make({"classes": ClassificationHead(E, 3, class_weights=weights)}).eval()
    output = model(TOKENS, rows=FIRST, labels=labels)
    logits = model.logits("classes", output.hidden, FIRST)
    close(output.loss, F.cross_entropy(logits, labels, torch.tensor(weights, dtype=torch.float64)))
    assert set(model.state_dict()) == set(make({"classes": ClassificationHead(E, 3)}).state_dict())


IGNORED = {
    "classes": (ClassificationHead(E, 3), {"rows": FIRST, "labels": torch.full((BATCH,), -100)}),
    "choice": (ChoiceHead(E), {"rows": FIRST.view(2, 2), "choice_labels": torch.tensor([-100, -100])}),
    "tags": (TaggingHead(E, 3), {"tag_targets": torch.full_like(TOKENS, -100)}),
    "span": (SpanHead(E), dict.fromkeys(("span_starts", "span_ends"), torch.full((BATCH,), -100))),
    "lm": (SequenceLMHead(), {"targets": torch.full_like(TOKENS, -100)}),
}


@pytest.mark.parametrize("name", IGNORED)
def test_a_batch_whose_targets_are_all_ignored_has_loss_0_and_gradients_0(name):
    head, targets = IGNORED[name]
    model = make({name: head}).train()
    output = model(TOKENS, lengths=LENGTHS, **targets)
    output.loss.backward()
    assert output.loss == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_the_padding_takes_no_part_in_a_span_s_softmax():
    model = make({"span": SpanHead(E)}).eval()
    starts, ends = torch.tensor([9, 0, 1, 0]), torch.tensor([9, 5, 2, 0])  # the first token, the last one
    spans = {"span_starts": starts, "span_ends": ends}
    output = model(TOKENS, lengths=LENGTHS, **spans)
    expected = []
    for scores, positions in zip(model.logits("span", output.hidden), (starts, ends), strict=True):
        rows = zip(scores, positions, LENGTHS, strict=True)
        expected.append(sum(F.cross_entropy(row[:n], position) for row, position, n in rows) / BATCH)
    close(output.loss, sum(expected) / 2)
    longer = F.pad(TOKENS, (0, 6), value=3)
    close(model(longer, lengths=LENGTHS, **spans).loss, output.loss)


def test_heads_may_share_an_entry_of_the_batch():
    model = make({"classes": ClassificationHead(E, 3), "number": RegressionHead(E)}).eval()
    labels, scores = torch.tensor([0, 2, 1, 1]), torch.rand(BATCH)
    both = model(TOKENS, rows=FIRST, labels=labels, scores=scores)
    close(both.losses["classes"], model(TOKENS, rows=FIRST, labels=labels).loss)
    close(both.losses["number"], model(TOKENS, rows=FIRST, scores=scores).loss)
    close(both.loss, both.losses["classes"] + both.losses["number"])


def test_the_pooled_rows_of_an_example_are_added():
    model = make({"classes": ClassificationHead(E, 3)}, "gpt1_tiny").eval()
    rows = torch.stack([FIRST[:2] + 5, FIRST[2:]], 1)
    output = model(TOKENS, rows=rows, labels=torch.tensor([0, 1]))
    flat = output.hidden.flatten(0, 1)
    logits = F.linear(flat[rows[:, 0]] + flat[rows[:, 1]], model.classes.weight, model.classes.bias)
    close(model.logits("classes", output.hidden, rows), logits)
    close(output.loss, F.cross_entropy(logits, torch.tensor([0, 1])))


def test_logits_and_losses_are_float32_under_autocast():
    heads = {"classes": ClassificationHead(E, 3), "span": SpanHead(E), "tags": TaggingHead(E, 3)}
    model = make(heads).float().train()
    targets = {"rows": FIRST, "labels": FIRST % 3, "tag_targets": TOKENS % 3, "span_starts": FIRST * 0}
    with torch.autocast("cpu", torch.bfloat16):
        output = model(TOKENS, **targets, span_ends=FIRST * 0)
        logits = [model.logits("classes", output.hidden, FIRST), *model.logits("span", output.hidden)]
    output.loss.backward()
    assert output.hidden.dtype == torch.bfloat16
    assert {t.dtype for t in (*logits, *output.losses.values())} == {torch.float32}


# Dropout --------------------------------------------------------------------------------------------------------


def test_one_mask_row_per_example_of_the_whole_batch():
    model = make({"number": RegressionHead(E, dropout=P)}).train()
    seeds, rows, scores = torch.arange(model.dropout_sites), FIRST.view(2, 2), torch.tensor([0.5, 2.0])
    output = model(TOKENS, rows=rows, scores=scores, seeds=seeds, first_sequence=torch.tensor([6]))
    pooled = dropped(model.pooled(output.hidden, rows).sum(1), seeds[-1:], 3)  # sequence 6 is of example 3
    predicted = F.linear(pooled, model.number.weight, model.number.bias)[:, 0]
    close(output.loss, F.mse_loss(predicted, scores.double()))


@pytest.mark.parametrize("shared", [False, True])
def test_choices_have_a_mask_each_or_one_for_all(shared):
    model = make({"choice": ChoiceHead(E, dropout=P, shared_dropout=shared)}, "gpt1_tiny").train()
    seeds, rows, labels = torch.arange(model.dropout_sites), FIRST.view(2, 2), torch.tensor([1, 0])
    output = model(TOKENS, rows=rows, choice_labels=labels, seeds=seeds, first_sequence=torch.tensor([6]))
    pooled, seed = model.pooled(output.hidden, rows), seeds[-1:]
    if shared:
        pooled = torch.stack([dropped(choice, seed, 3) for choice in pooled.unbind(1)], 1)
    else:
        pooled = dropped(pooled, seed, 6)
    close(output.loss, F.cross_entropy(F.linear(pooled, model.choice.weight)[..., 0], labels))


def test_tags_drop_the_rows_of_the_trunk():
    model = make({"tags": TaggingHead(E, 3, dropout=P)}).train()
    seeds, tags = torch.arange(model.dropout_sites), TOKENS % 3
    output = model(TOKENS, tag_targets=tags, seeds=seeds, first_sequence=torch.tensor([2]))
    logits = F.linear(dropped(output.hidden, seeds[-1:], 2 * LENGTH), model.tags.weight, model.tags.bias)
    close(output.loss, F.cross_entropy(logits.flatten(0, 1), tags.flatten()))


def test_heads_drop_in_training_alone():
    model = make({"classes": ClassificationHead(E, 3)})
    batch = {"tokens": TOKENS, "rows": FIRST, "labels": FIRST % 3}
    model.train()
    assert model(**batch).loss != model(**batch).loss  # only the head drops
    model.eval()
    logits = model.logits("classes", model(**batch).hidden, FIRST)
    close(model(**batch).loss, F.cross_entropy(logits, FIRST % 3))
    assert make({"span": SpanHead(E)}).dropout_sites == make({"x": RegressionHead(E, dropout=0.0)}).dropout_sites


# GPT-1's L3 -----------------------------------------------------------------------------------------------------


def gradients(model: Model, seeds: Tensor, **targets: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(TOKENS, lengths=LENGTHS, seeds=seeds, **targets).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


CLASSES = {"rows": FIRST + LENGTHS - 1, "labels": torch.tensor([0, 2, 1, 1])}


def test_the_gradient_of_l3_is_the_sum_of_those_of_both_losses_run_apart():
    heads = {"classes": ClassificationHead(E, 3), "lm": SequenceLMHead(weight=0.5)}
    model = make(heads, "gpt1_tiny").train()
    for block in model.blocks:
        block.attention.dropout = block.mlp_norm.dropout = 0.1
    seeds = torch.arange(model.dropout_sites)
    both = gradients(model, seeds, **CLASSES, targets=TARGETS)
    apart = gradients(model, seeds, **CLASSES), gradients(model, seeds, targets=TARGETS)
    assert both.keys() == apart[0].keys() | apart[1].keys()
    for name, gradient in both.items():
        close(gradient, sum(part[name] for part in apart if name in part))


def test_the_auxiliary_loss_is_of_sequences_not_of_tokens():
    model = make({"lm": SequenceLMHead(weight=2.0)}, "gpt1_tiny").eval()
    output = model(TOKENS, lengths=LENGTHS, targets=TARGETS)
    logits = model.logits("lm", output.hidden)
    each = [F.cross_entropy(row[:n], target[:n]) for row, target, n in zip(logits, TARGETS, LENGTHS, strict=True)]
    close(output.losses["lm"], 2 * sum(each) / BATCH)
    tokens = make({"lm": CausalLMHead()}, "gpt1_tiny").eval()(TOKENS, lengths=LENGTHS, targets=TARGETS).loss
    assert abs(output.loss / 2 - tokens) > 0.01


@pytest.mark.parametrize("given", [{"targets": TARGETS}, {}], ids=["lambda 0", "no targets"])
def test_without_the_auxiliary_loss_its_logits_are_not_computed(given, monkeypatch):
    heads = {"classes": ClassificationHead(E, 3), "lm": SequenceLMHead(weight=0.0 if given else 0.5)}
    model = make(heads, "gpt1_tiny").eval()
    expected = make({"classes": ClassificationHead(E, 3)}, "gpt1_tiny").eval()(TOKENS, **CLASSES).loss
    monkeypatch.setattr(model.lm, "cross_entropy", None)  # would fail if called
    output = model(TOKENS, **CLASSES, **given)
    output.loss.backward()
    assert torch.equal(output.loss, expected)
    assert output.losses.get("lm", 0) == 0


# Errors ---------------------------------------------------------------------------------------------------------

HEADS = {
    "classes": ClassificationHead(E, 3),
    "number": RegressionHead(E),
    "choice": ChoiceHead(E),
    "tags": TaggingHead(E, 3),
    "span": SpanHead(E),
}
LABELS = FIRST * 0


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ({"rows": FIRST}, r"rows and labels go together: give all of them or none"),
        ({"labels": LABELS}, "rows and labels go together"),
        ({"rows": [0, 1], "labels": LABELS}, r"rows must be a tensor of int64 of shape \(B,\) or \(B, k\), got list"),
        ({"rows": FIRST[0], "labels": LABELS}, r"rows must have shape \(B,\) or \(B, k\), got \(\)"),
        ({"rows": FIRST.int(), "labels": LABELS}, "rows must be int64, got int32"),
        ({"rows": FIRST + 10, "labels": LABELS}, r"rows must lie in \[0, 40\), got 40"),
        ({"rows": FIRST, "labels": LABELS + 3}, r"labels must lie in \[0, 3\) or equal ignore_index -100, got 3"),
        ({"rows": FIRST, "labels": LABELS[:3]}, r"labels must have shape \(4,\), got \(3,\)"),
        ({"rows": FIRST, "scores": LABELS}, "scores must be float32, got int64"),
        ({"rows": FIRST, "scores": torch.zeros(4, 1)}, r"scores must have shape \(4,\), got \(4, 1\)"),
        ({"rows": FIRST, "choice_labels": LABELS}, r"rows must have shape \(B, k\), got \(4,\)"),
        ({"rows": FIRST.view(2, 2), "choice_labels": LABELS[:2] + 2}, r"choice_labels must lie in \[0, 2\)"),
        ({"tag_targets": TOKENS[0]}, r"tag_targets must have shape \(4, 10\), got \(10,\)"),
        ({"tag_targets": TOKENS * 0 + 3}, r"tag_targets must lie in \[0, 3\)"),
        ({"span_starts": LABELS}, "span_starts and span_ends go together"),
        (
            {"span_starts": LABELS, "span_ends": LABELS + 1},
            "span_ends must lie in their sequences, got 1 in sequence 3",
        ),
    ],
)
def test_bad_targets_get_a_sentence(targets, sentence):
    with pytest.raises((TypeError, ValueError), match=f"BERT: {sentence}"):
        make(HEADS)(TOKENS, lengths=LENGTHS, **targets)


def test_bad_arguments_of_heads_get_a_sentence():
    with pytest.raises(ValueError, match="class_weights must have 3 numbers, one per class, got 2"):
        ClassificationHead(E, 3, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        SequenceLMHead(weight=-1)
    with pytest.raises(ValueError, match=r"Dropout: dropout must be in \[0, 1\), got 1.5"):
        TaggingHead(E, 3, dropout=1.5)
