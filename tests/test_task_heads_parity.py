"""The heads of fine-tuning against transformers' models with heads, in float64: losses, logits and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import transformers
from parity import BOUND, assert_same, dropout_draws, randomise, seeds_for
from runs import one_thread
from torch import Tensor, nn

from fastlm.integrations import transformers as hf
from fastlm.models import BERT, GPT1, Model
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
BATCH, LENGTH, HIDDEN = 4, 21, 32
LENGTHS = torch.tensor([LENGTH, 13, 7, 2], dtype=torch.int32)
FULL = torch.full((BATCH,), LENGTH, dtype=torch.int32)
FIRST = torch.arange(BATCH) * LENGTH  # the rows of [CLS]
LAST = FIRST + LENGTHS - 1
PADDING = 100  # a token that is nowhere else


def drawn(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(5 + high))


TOKENS = drawn(1, PADDING, BATCH, LENGTH)  # no token is 0, whose embedding transformers never trains
VALID = torch.arange(LENGTH) < LENGTHS[:, None]
TAGS = drawn(0, 5, BATCH, LENGTH).where(VALID & (TOKENS % 3 > 0), -100)
SCORES = torch.tensor([0.5, 2.5, 5.0, 1.0], dtype=torch.float64)


class Kind(NamedTuple):
    """A head of both libraries. `linear` is their linear layer; `targets` and `given` are the batch of either.

    `shifts`: parameters that add one number to all scores of a softmax, which changes nothing: their gradient is 0.
    """

    theirs: type[nn.Module]
    labels: int
    head: Callable[[], Head]
    linear: str
    targets: dict[str, Tensor]
    given: dict[str, Tensor]
    lengths: Tensor = LENGTHS
    shape: tuple[int, ...] = (BATCH, LENGTH)
    shifts: tuple[str, ...] = ()


KINDS = {
    "classification": Kind(
        transformers.BertForSequenceClassification,
        3,
        lambda: ClassificationHead(HIDDEN, 3),
        "classifier",
        {"rows": FIRST, "labels": torch.tensor([0, 2, 1, 2])},
        {"labels": torch.tensor([0, 2, 1, 2])},
    ),
    "regression": Kind(
        transformers.BertForSequenceClassification,
        1,
        lambda: RegressionHead(HIDDEN),
        "classifier",
        {"rows": FIRST, "scores": SCORES},
        {"labels": SCORES},
    ),
    "choice": Kind(
        transformers.BertForMultipleChoice,
        1,
        lambda: ChoiceHead(HIDDEN),
        "classifier",
        {"rows": FIRST.view(2, 2), "choice_labels": torch.tensor([1, 0])},
        {"labels": torch.tensor([1, 0])},
        shape=(2, 2, LENGTH),
        shifts=("head.bias",),
    ),
    "tagging": Kind(
        transformers.BertForTokenClassification,
        5,
        lambda: TaggingHead(HIDDEN, 5),
        "classifier",
        {"tag_targets": TAGS},
        {"labels": TAGS},
    ),
    "span": Kind(  # without padding, which takes part in their softmax
        transformers.BertForQuestionAnswering,
        2,
        lambda: SpanHead(HIDDEN),
        "qa_outputs",
        {"span_starts": torch.tensor([0, 3, 20, 7]), "span_ends": torch.tensor([0, 5, 20, 20])},
        {"start_positions": torch.tensor([0, 3, 20, 7]), "end_positions": torch.tensor([0, 5, 20, 20])},
        lengths=FULL,
        shifts=("head.bias", "blocks.1.mlp_norm.bias"),
    ),
    "gpt1 classification": Kind(
        transformers.OpenAIGPTForSequenceClassification,
        3,
        lambda: ClassificationHead(HIDDEN, 3, dropout=0.0, bias=False),
        "score",
        {"rows": LAST, "labels": torch.tensor([0, 2, 1, 2])},
        {"labels": torch.tensor([0, 2, 1, 2])},
    ),
}


def build(theirs_class: type[nn.Module], labels: int) -> nn.Module:
    sizes: dict[str, Any] = {"vocab_size": 101, "num_labels": labels, "pad_token_id": PADDING}
    if "Bert" in theirs_class.__name__:
        sizes |= {"max_position_embeddings": 24, "hidden_size": HIDDEN, "intermediate_size": 64, "pad_token_id": 0}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "attn_implementation": "eager"}
        config = transformers.BertConfig(**sizes)
    else:
        config = transformers.OpenAIGPTConfig(n_positions=24, n_embd=HIDDEN, n_layer=2, n_head=2, **sizes)
    theirs = theirs_class(config).double()
    randomise(theirs)
    return theirs


def trunk(theirs: nn.Module, tensors: dict[str, Tensor], config) -> dict[str, Tensor]:
    """Returns tensors of their trunk under our names; a pooler that they lack is 0."""
    inside = {n: t for n, t in tensors.items() if n.startswith(("bert.", "transformer."))}
    ours = hf.import_weights(inside, config, fresh_heads=True)
    if isinstance(theirs, transformers.BertPreTrainedModel) and "pooler.weight" not in ours:
        zeros = ours["embedding.word"].new_zeros(HIDDEN, HIDDEN)
        ours |= {"pooler.weight": zeros, "pooler.bias": zeros[0].clone()}
    return ours


def convert(theirs: nn.Module, heads: dict[str, Head], linear: dict[str, str]) -> Model:
    """Returns our model with their weights; `linear` names, for each head with weights, their linear layer."""
    config, state = hf.import_config(theirs.config.to_dict()), theirs.state_dict()
    weights = trunk(theirs, state, config)
    for ours, layer in linear.items():
        weights |= {f"{ours}.{n}": state[f"{layer}.{n}"].clone() for n in ("weight", "bias") if f"{layer}.{n}" in state}
    model_class = BERT if isinstance(theirs, transformers.BertPreTrainedModel) else GPT1
    return model_class.from_weights(config, weights, heads)


def assert_same_gradients(ours: Model, theirs: nn.Module, linear: dict[str, str], shifts: tuple[str, ...]) -> None:
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in theirs.named_parameters()}
    expected = trunk(theirs, gradients, ours.config)
    for name, layer in linear.items():
        expected |= {
            f"{name}.{n}": gradients[f"{layer}.{n}"] for n in ("weight", "bias") if f"{layer}.{n}" in gradients
        }
    for name, p in ours.named_parameters():
        if p.grad is None:
            assert name.startswith("pooler.") and not expected[name].any(), name
        elif name in shifts:
            assert max(p.grad.abs().max(), expected[name].abs().max()) < BOUND, name
        else:
            assert_same(f"gradient of {name}", p.grad, expected[name])


def seeds_of(ours: Model) -> Tensor:
    trunks = seeds_for(ours.config.layers)
    return torch.cat([trunks, torch.arange(ours.dropout_sites - len(trunks)) + 11])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", KINDS)
def test_loss_logits_and_every_gradient_agree(name, training, monkeypatch):
    kind = KINDS[name]
    theirs, linear = build(kind.theirs, kind.labels), {"head": kind.linear}
    ours = convert(theirs, {"head": kind.head()}, linear)
    theirs.train(training), ours.train(training)
    valid = torch.arange(LENGTH) < kind.lengths[:, None]
    tokens, seeds = TOKENS.where(valid, PADDING), seeds_of(ours)
    with dropout_draws(seeds if training else seeds[:0], monkeypatch):
        expected = theirs(tokens.view(kind.shape), attention_mask=valid.long().view(kind.shape), **kind.given)
    output = ours(tokens, lengths=kind.lengths, seeds=seeds, **kind.targets)
    assert_same("loss", output.loss, expected.loss)
    if not training:
        assert_same_logits(ours, kind, output.hidden, expected, valid)
    output.loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs, linear, kind.shifts)


def assert_same_logits(ours: Model, kind: Kind, hidden: Tensor, expected, valid: Tensor) -> None:
    rows = [kind.targets["rows"]] if "rows" in kind.targets else []
    logits = ours.logits("head", hidden, *rows)
    if isinstance(logits, tuple):
        assert_same("starts", logits[0], expected.start_logits)
        assert_same("ends", logits[1], expected.end_logits)
    elif rows:
        assert_same("logits", logits.view(expected.logits.shape), expected.logits)
    else:
        assert_same("logits", logits[valid], expected.logits[valid])


DOUBLE = {"choice": "multiple_choice_head.summary"}


def double_heads(shared: bool, lm: Head) -> tuple[nn.Module, Model]:
    theirs = build(transformers.OpenAIGPTDoubleHeadsModel, 1)
    return theirs, convert(theirs, {"lm": lm, "choice": ChoiceHead(HIDDEN, shared_dropout=shared)}, DOUBLE)


TARGETS = TOKENS.roll(-1, 1).where(torch.arange(LENGTH) < LENGTHS[:, None] - 1, -100)


def double_losses(theirs: nn.Module, labels: Tensor):
    """Returns their two losses and LM logits. They shift labels, which `targets` are already."""
    shape = (2, 2, LENGTH)
    ends = (LENGTHS.long() - 1).view(2, 2)
    shifted = TARGETS.roll(1, 1).view(shape)
    output = theirs(TOKENS.view(shape), mc_token_ids=ends, labels=shifted, mc_labels=labels)
    return output.loss, output.mc_loss, output.logits.view(BATCH, LENGTH, -1)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_both_losses_of_the_double_heads_agree(training, monkeypatch):
    theirs, ours = double_heads(False, CausalLMHead())
    theirs.train(training), ours.train(training)
    seeds, labels = seeds_of(ours), torch.tensor([1, 0])
    with dropout_draws(seeds if training else seeds[:0], monkeypatch):
        lm, choice, _ = double_losses(theirs, labels)
    output = ours(TOKENS, lengths=LENGTHS, seeds=seeds, rows=LAST.view(2, 2), choice_labels=labels, targets=TARGETS)
    assert_same("language modelling", output.losses["lm"], lm)
    assert_same("choice", output.losses["choice"], choice)
    output.loss.backward()
    (lm + choice).backward()
    assert_same_gradients(ours, theirs, DOUBLE, ("choice.bias",))


def test_the_auxiliary_loss_is_a_mean_of_the_sequences_means():
    theirs, ours = double_heads(True, SequenceLMHead(weight=0.5))
    theirs.eval(), ours.eval()
    _, choice, logits = double_losses(theirs, torch.tensor([1, 0]))
    each = F.cross_entropy(logits.transpose(1, 2), TARGETS, reduction="none").sum(1) / (TARGETS != -100).sum(1)
    output = ours(TOKENS, lengths=LENGTHS, rows=LAST.view(2, 2), choice_labels=torch.tensor([1, 0]), targets=TARGETS)
    assert_same("lambda L1", output.losses["lm"], 0.5 * each.mean())
    assert_same("L3", output.loss, choice + 0.5 * each.mean())
    output.loss.backward()
    (choice + 0.5 * each.mean()).backward()
    assert_same_gradients(ours, theirs, DOUBLE, ("choice.bias",))
