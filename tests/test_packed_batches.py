"""Packed, binned and padded batches are the same batch: losses, gradients, masks, and one compiled graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import one_thread
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fastlm.models import PRESETS, Model, build
from fastlm.nn import (
    ChoiceHead,
    ClassificationHead,
    RegressionHead,
    SequenceLMHead,
    SpanHead,
    TaggingHead,
)

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
CONTEXT, VOCABULARY, HIDDEN = 24, 40, 32
SIZES = {"vocab_size": VOCABULARY, "context": CONTEXT, "hidden": HIDDEN, "intermediate": 64}
WITHOUT = {"dropout": 0.0, "embedding_dropout": 0.0}  # their masks depend on the row of the batch


def heads(model: str) -> dict:
    pooled = {
        "classes": ClassificationHead(HIDDEN, 3),
        "number": RegressionHead(HIDDEN),
        "choice": ChoiceHead(HIDDEN, shared_dropout=True),
    }
    if model == "gpt1_tiny":
        return {**pooled, "lm": SequenceLMHead()}
    return {**pooled, "tags": TaggingHead(HIDDEN, 4, dropout=0.0), "span": SpanHead(HIDDEN)}


def make(name: str, attention_dropout: float = 0.0, *, layers: int = 2, backend: str = "auto") -> Model:
    """Returns a model in float64 with all heads, in training; the heads on pooled rows drop a tenth."""
    torch.manual_seed(1)
    sizes = {**SIZES, **WITHOUT, "attention_dropout": attention_dropout, "layers": layers, "initializer_range": 0.2}
    return build(replace(PRESETS[name], **sizes), heads(name), backend=backend).double().train()


def sequences(lengths: Sequence[int], model: Model) -> list[dict[str, Tensor]]:
    """Returns sequences of these lengths with their targets, of which a tenth is ignored.

    Two sequences make an example, whose labels are in the first of them.
    """
    generator = torch.Generator().manual_seed(len(lengths) + sum(lengths))

    def draw(high: int, *shape: int) -> Tensor:
        ignored = torch.rand(shape, generator=generator) < 0.1
        return torch.randint(high, shape, generator=generator).where(~ignored, -100)

    made = []
    for i, length in enumerate(lengths):
        sequence = {"tokens": torch.randint(VOCABULARY, (length,), generator=generator)}
        if "lm" in model.head_names:
            sequence["targets"] = draw(VOCABULARY, length)
        else:
            sequence["segments"] = torch.randint(2, (length,), generator=generator)
            sequence |= {"tag_targets": draw(4, length), "span_starts": draw(length), "span_ends": draw(length)}
        if i % 2 == 0:
            sequence |= {"labels": draw(3), "choice_labels": draw(2), "scores": torch.rand((), generator=generator)}
        made.append(sequence)
    return made


BY_TOKEN = {"tokens": 7, "segments": 1, "targets": -100, "tag_targets": -100}  # and what they are padded with


def padded(made: list[dict[str, Tensor]], length: int) -> dict[str, Tensor]:
    """Returns a batch whose sequences are padded to `length`."""
    lengths = torch.tensor([len(sequence["tokens"]) for sequence in made])
    batch = {"lengths": lengths.int(), "rows": _rows(torch.arange(len(made)) * length, made)}
    for name, padding in BY_TOKEN.items():
        if name in made[0]:
            batch[name] = torch.stack([F.pad(s[name], (0, length - len(s[name])), value=padding) for s in made])
    return batch | _targets(made)


def packed(made: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    offsets = F.pad(torch.tensor([len(sequence["tokens"]) for sequence in made]).cumsum(0), (1, 0))
    batch = {"cu_seqlens": offsets.int(), "rows": _rows(offsets[:-1], made)}
    for name in BY_TOKEN:
        if name in made[0]:
            batch[name] = torch.cat([sequence[name] for sequence in made])
    return batch | _targets(made)


def _rows(first: Tensor, made: list[dict[str, Tensor]]) -> Tensor:
    """Returns the rows that the heads read, two per example: the last of a sequence in GPT-1, the first in BERT."""
    read = [len(sequence["tokens"]) - 1 if "targets" in sequence else 0 for sequence in made]
    return (first + torch.tensor(read)).view(-1, 2)


def _targets(made: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = [name for name in made[0] if name not in BY_TOKEN]
    return {name: torch.stack([sequence[name] for sequence in made if name in sequence]) for name in names}


def results(model: Model, batch: dict[str, Tensor], forward: Callable | None = None, **options) -> dict[str, Tensor]:
    """Returns every loss and every gradient of a batch; `forward`: what computes the losses, by default the model."""
    model.zero_grad()
    seeds = torch.arange(model.dropout_sites) + 3
    output = (model if forward is None else forward)(**batch, seeds=seeds, **options)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {f"{name} loss": loss.detach() for name, loss in output.losses.items()} | gradients


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture(scope="module", params=["gpt1_tiny", "bert_tiny"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=[0.0, 0.3], ids=["no attention dropout", "attention dropout"])
def model(request, name) -> Model:
    return make(name, request.param)


@settings(max_examples=12, deadline=None)
@given(pairs=st.lists(st.tuples(*2 * [st.integers(1, CONTEXT)]), min_size=1, max_size=3))
def test_packed_binned_and_padded_batches_have_the_same_losses_and_gradients(model, pairs):
    """Heads on pooled rows drop by the example's number, attention by sequence and position: those masks agree."""
    lengths = list(itertools.chain(*pairs))
    made = sequences(lengths, model)
    whole = results(model, padded(made, CONTEXT))
    edge = min(CONTEXT, -(-max(lengths) // 8) * 8)  # the bin of the longest
    assert_close(results(model, padded(made, edge)), whole)
    assert_close(results(model, packed(made)), whole)
    assert_close(results(model, packed(made), max_seqlen=max(lengths)), whole)


def test_the_reference_agrees_too(name):
    model, reference = make(name, 0.3), make(name, 0.3, backend="reference")
    batch = packed(sequences([5, 24, 1, 17], model))
    assert_close(results(reference, batch), results(model, batch))


def test_sequences_without_tokens_change_nothing(name):
    model = make(name)
    batch = packed(sequences([5, 24], model))
    expected = results(model, batch)
    more = {"cu_seqlens": torch.cat([batch["cu_seqlens"], batch["cu_seqlens"][-1:]])}
    more |= {n: torch.cat([batch[n], torch.tensor([-100])]) for n in ("span_starts", "span_ends") if n in batch}
    assert_close(results(model, batch | more), expected)


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("head", ["number", "choice"])
def test_parts_of_a_batch_draw_the_masks_of_the_whole(name, kind, head):
    """Also in the heads on pooled rows, which count examples: an example here has two sequences."""
    model = make(name, 0.3)
    batch_of = packed if kind == "packed" else lambda made: padded(made, CONTEXT)
    made, seeds, losses = sequences([9, 24, 3, 17, 8, 8], model), torch.arange(model.dropout_sites), []
    for part, first in ((made, 0), (made[:2], 0), (made[2:], 2), (made[2:], 0)):
        batch = batch_of(part) | {"choice_labels": torch.tensor([1] * (len(part) // 2))}
        target = {"number": "scores", "choice": "choice_labels"}[head]
        given = {n: batch[n] for n in ("tokens", "lengths", "cu_seqlens", "rows", target) if n in batch}
        losses.append(model(**given, seeds=seeds, first_sequence=torch.tensor([first])).losses[head])
    whole, before, after, elsewhere = losses
    torch.testing.assert_close((before + 2 * after) / 3, whole, rtol=1e-12, atol=1e-12)
    assert abs(elsewhere - after) > 1e-3 * after


def test_what_one_sequence_holds_leaves_the_others_bits_alone(name):
    model = make(name).eval()
    batch = packed(sequences([9, 12, 3, 5], model))
    inputs = {n: batch[n] for n in ("tokens", "cu_seqlens")}
    changed = inputs | {"tokens": batch["tokens"].clone()}
    changed["tokens"][:9] = (changed["tokens"][:9] + 1) % VOCABULARY
    first, second = model(**inputs).hidden, model(**changed).hidden
    assert torch.equal(first[9:], second[9:]) and not torch.equal(first[:9], second[:9])


def test_one_graph_serves_all_packings_and_gives_the_same_bits(name):
    torch._dynamo.reset()
    model, counter = make(name, 0.3, layers=1), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for lengths in ([9, 12, 3, 5], [2, 2, 24, 7, 8, 1], [11, 6, 1, 2, 9, 9, 3, 24]):
        batch = packed(sequences(lengths, model))
        eager = results(model, batch)
        for n, tensor in results(model, batch, compiled).items():
            assert torch.equal(tensor, eager[n]), n
    assert counter.frame_count == 2


OFFSETS = torch.tensor([0, 3, 8], dtype=torch.int32)
PACKED = torch.zeros(8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": PACKED.view(2, 4)}, r"BERT: tokens must be \(T,\) with T >= 1 and cu_seqlens, got shape \(2, 4\)"),
        ({"lengths": OFFSETS[1:]}, r"BERT: give lengths \(padded tokens\) or cu_seqlens \(packed tokens\), not both"),
        ({"cu_seqlens": OFFSETS.long()}, "BERT: cu_seqlens must be int32, got int64"),
        ({"cu_seqlens": OFFSETS[:2]}, r"BERT: cu_seqlens must rise from 0 to the 8 rows given, got \[0, 3\]"),
        ({"max_seqlen": 4}, "BERT: max_seqlen must be at least the longest sequence, 5, got 4"),
        ({"max_seqlen": 25}, r"BERT: max_seqlen must lie in \[1, 24\], the context, got 25"),
        ({"segments": PACKED[:7]}, r"BERT: segments must have shape \(8,\), got \(7,\)"),
        ({"cu_seqlens": None}, r"BERT: tokens must be \(B, S\) with 1 <= S <= 24, got shape \(8,\)"),
        ({"cu_seqlens": None, "tokens": PACKED[None], "max_seqlen": 8}, "BERT: max_seqlen goes with cu_seqlens"),
        (
            {"span_starts": PACKED[:2] + 3, "span_ends": PACKED[:2]},
            "span_starts must lie in their sequences, got 3 in s",
        ),
        ({"rows": PACKED[:2] + 8, "labels": PACKED[:2]}, r"BERT: rows must lie in \[0, 8\), got 8"),
    ],
)
def test_bad_packings_get_a_sentence(options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        make("bert_tiny")(**{"tokens": PACKED, "cu_seqlens": OFFSETS} | options)


@pytest.mark.parametrize("targets", [{"mlm_positions": PACKED[None], "mlm_targets": PACKED[None]},
                                     {"next_sentence_labels": PACKED[:2]}])  # fmt: skip
def test_bert_s_pretraining_heads_take_padded_batches(targets):
    model = build(replace(PRESETS["bert_tiny"], **SIZES))
    with pytest.raises(ValueError, match=r"go with padded tokens \(B, S\), got packed tokens \(8,\)"):
        model(PACKED, cu_seqlens=OFFSETS, **targets)
