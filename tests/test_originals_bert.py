"""Google's BERT variables, made of transformers' weights: the same logits, and the same arrays after a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity import BOUND, randomise

from fastlm import cli
from fastlm.integrations.originals import read_google, write_google
from fastlm.models import BERT, BERTConfig

SIZES = {
    "vocab_size": 12, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 16,
    "type_vocab_size": 2, "initializer_range": 0.02,
}  # fmt: skip
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "was", "late", "##r", ".", ",", "she")
RENAMED = {
    "cls.predictions.bias": "cls/predictions/output_bias",
    "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
    "cls.seq_relationship.bias": "cls/seq_relationship/output_bias",
}


def google_name(name: str) -> str:
    if name in RENAMED:
        return RENAMED[name]
    name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    name = name.replace("_embeddings.weight", "_embeddings").replace(".layer.", ".layer_")
    return name.replace(".weight", ".kernel").replace(".", "/")


def arrays_of(theirs: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    arrays = {google_name(name): p.detach().numpy() for name, p in theirs.named_parameters()}
    return {name: a.T.copy() if name.endswith("/kernel") else a for name, a in arrays.items()}


def written(folder: Path) -> tuple[transformers.BertForPreTraining, dict[str, np.ndarray]]:
    """Writes the files of a model of transformers whose matrices are all square, with Adam's slots."""
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**SIZES, hidden_act="gelu_new")).eval()
    randomise(theirs)
    arrays = arrays_of(theirs)
    slots = {f"{name}/{slot}": np.zeros_like(a) for name, a in arrays.items() for slot in ("adam_m", "adam_v")}
    save(folder, arrays | slots | {"global_step": np.array(7)})
    return theirs, arrays


def save(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "model.npz", **arrays)
    (folder / "bert_config.json").write_text(json.dumps(SIZES | {"hidden_act": "gelu"}))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))


@torch.no_grad()
def test_the_logits_are_those_of_transformers(tmp_path):
    theirs = written(tmp_path / "google")[0].double()
    ours = read_google(tmp_path / "google/model.npz").double()
    tokens, segments = torch.randint(12, (2, 16)), torch.randint(2, (2, 16))
    hidden, expected = ours(tokens, segments).hidden, theirs(tokens, token_type_ids=segments)
    masked = ours.logits("mlm", hidden, torch.arange(16).expand(2, 16))
    for logits, wanted in (
        (masked, expected.prediction_logits),
        (ours.logits("nsp", hidden), expected.seq_relationship_logits),
    ):
        assert (logits - wanted).abs().max() <= BOUND * wanted.abs().max()


def test_round_trips_are_exact_by_the_command(tmp_path, capsys):
    theirs, arrays = written(tmp_path / "google")
    steps = (
        ("google/model.npz", "ours", []), ("ours", "back", ["--to", "google"]),
        ("google", "hf", ["--to", "transformers"]), ("hf", "again", ["--to", "google"]),
    )  # fmt: skip
    for source, target, more in steps:
        assert cli.main(["convert", str(tmp_path / source), str(tmp_path / target), *more]) == 0, capsys.readouterr()
    assert f"left out: {2 * len(arrays) + 1} variables of the optimizer" in capsys.readouterr().out
    for name in ("back", "again"):
        with np.load(tmp_path / name / "bert_model.npz", allow_pickle=False) as found:
            assert sorted(found.files) == sorted(arrays)
            assert all(np.array_equal(found[n], a) and found[n].dtype == a.dtype for n, a in arrays.items())
        assert json.loads((tmp_path / name / "bert_config.json").read_text()) == SIZES | {"hidden_act": "gelu"}
        assert (tmp_path / name / "vocab.txt").read_bytes() == (tmp_path / "google/vocab.txt").read_bytes()
    read = transformers.BertForPreTraining.from_pretrained(tmp_path / "hf")
    assert all(torch.equal(p, q) for p, q in zip(read.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(("start", "heads"), [("cls/", ()), ("cls/seq", ("mlm",)), ("cls/predictions", ("nsp",))])
def test_heads_that_the_file_lacks_are_not_there(start, heads, tmp_path):
    _, arrays = written(tmp_path / "google")
    save(tmp_path / "google", {name: a for name, a in arrays.items() if not name.startswith(start)})
    assert read_google(tmp_path / "google").head_names == heads


def test_names_with_a_colon_and_zero_are_the_same_variables(tmp_path):
    arrays = written(tmp_path / "plain")[1]
    save(tmp_path / "colon", {f"{name}:0": a for name, a in arrays.items()} | {"global_step:0": np.array(7)})
    plain, colon = (read_google(tmp_path / name).state_dict() for name in ("plain", "colon"))
    assert plain.keys() == colon.keys() and all(torch.equal(plain[name], colon[name]) for name in plain)


def test_missing_and_unknown_variables_are_named(tmp_path):
    _, arrays = written(tmp_path / "google")
    gone = "bert/encoder/layer_1/attention/self/key/kernel"
    save(tmp_path / "google", {n: a for n, a in arrays.items() if n != gone} | {"output_weights": np.zeros(2)})
    with pytest.raises(ValueError, match=f"missing: {gone}.*unknown: output_weights"):
        read_google(tmp_path / "google")
    save(tmp_path / "google", arrays | {"evil": np.array([{}])})
    with pytest.raises(ValueError, match=r"model\.npz: a \.npz of numbers expected.*allow_pickle"):
        read_google(tmp_path / "google")
    (tmp_path / "google/model.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"model\.npz: a \.npz of numbers expected"):
        read_google(tmp_path / "google")
    (tmp_path / "google/bert_config.json").write_text(json.dumps(SIZES | {"hidden_act": "relu"}))
    with pytest.raises(ValueError, match=r"bert_config\.json: hidden_act must be 'gelu', got 'relu'"):
        read_google(tmp_path / "google")


def test_a_variable_of_another_shape_is_named_with_both_shapes(tmp_path):
    _, arrays = written(tmp_path / "google")
    name = "bert/encoder/layer_1/attention/self/key/kernel"
    for wrong, got in (
        (np.zeros((32, 16), np.float32), r"float32 of shape \[32, 16\]"),
        (np.zeros((32, 32), int), "int64"),
    ):
        save(tmp_path / "google", arrays | {name: wrong})
        with pytest.raises(ValueError, match=rf"model\.npz: {name}: .* shape \[32, 32\] expected, .* got {got}"):
            read_google(tmp_path / "google")


@pytest.mark.parametrize(("field", "value"), [("gelu", "none"), ("eps", 1e-6), ("embedding_dropout", 0.5)])
def test_a_model_that_the_format_cannot_hold_is_refused(field, value, tmp_path):
    sizes = {"vocab_size": 9, "context": 8, "layers": 1, "hidden": 32, "heads": 2, "intermediate": 64}
    with pytest.raises(ValueError, match=f"{field} must "):
        write_google(BERT(BERTConfig(**{**sizes, field: value})), tmp_path / "out")
