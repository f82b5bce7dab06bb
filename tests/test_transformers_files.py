"""Folders of transformers': shards, pickles of tensors alone, tensors that are left out, damage, and the hub."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers
from parity import randomise
from safetensors.torch import load_file, save_file

from fastlm.integrations import transformers as hf
from fastlm.models import BERT, BERTConfig

SIZES = BERTConfig(vocab_size=64, context=16, layers=2, hidden=32, heads=2, intermediate=64, gelu="none")
WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


@pytest.fixture
def ours() -> BERT:
    model = BERT(SIZES)
    randomise(model)
    return model


@pytest.fixture
def folder(tmp_path, ours) -> Path:
    hf.save_pretrained(ours, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(folder) -> Path:
    """A folder whose model transformers wrote in several shards."""
    theirs = transformers.BertForPreTraining.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    theirs.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def pickled(folder: Path, content, **options) -> Path:
    (folder / WEIGHTS).unlink(missing_ok=True)
    torch.save(content, folder / PICKLE, **options)
    return folder


def assert_read(folder: Path, ours: BERT) -> None:
    loaded = hf.from_pretrained(folder)
    assert loaded.left_out == loaded.fresh == ()
    for (name, p), (other, q) in zip(loaded.model.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)


def test_shards_are_joined(sharded, ours):
    assert_read(sharded, ours)
    assert torch.equal(hf.load(sharded).mlm.bias, ours.mlm.bias)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_of_tensors_is_read(folder, ours, zipped):
    theirs = transformers.BertForPreTraining.from_pretrained(folder)
    assert_read(pickled(folder, theirs.state_dict(), _use_new_zipfile_serialization=zipped), ours)


def test_shards_that_are_pickles_are_read(folder, ours):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    index = {}
    for number in range(2):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save({name: weights[name] for name in names[number::2]}, folder / file)
        index |= dict.fromkeys(names[number::2], file)
    (folder / f"{PICKLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_read(folder, ours)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_of_more_than_tensors_runs_nothing(folder, zipped):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(folder / "sprung"),)

    pickled(folder, {"bert.pooler.dense.bias": Trap()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: a damaged file, or a pickle of more than tensors"):
        hf.from_pretrained(folder)
    assert not (folder / "sprung").exists()


def test_damaged_files_are_named(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:5000])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file, or a truncated one"):
        hf.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model: no weights; model\.safetensors or pytorch_model\.bin expected"
    ):
        hf.from_pretrained(folder)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + bytes(100), b"\x80\x02}"):
        (folder / PICKLE).write_bytes(content)
        with pytest.raises(
            ValueError, match=r"pytorch_model\.bin: (a damaged file|not a file of torch\.save)"
        ) as error:
            hf.from_pretrained(folder)
        assert str(folder) in str(error.value)
    pickled(folder, {"model": {"bert.pooler.dense.bias": torch.zeros(2)}})
    with pytest.raises(ValueError, match="a dict of tensors expected, got a dict of other things"):
        hf.from_pretrained(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: a JSON object expected"):
        hf.from_pretrained(folder)


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_and_its_shards_must_agree(sharded):
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    content = first.read_bytes()
    tensors = load_file(first)
    name = next(iter(tensors))
    save_file({n: t for n, t in tensors.items() if n != name}, first)
    with pytest.raises(ValueError, match=rf"{first.name}: not the tensors that {INDEX} lists: missing: {name}"):
        hf.from_pretrained(sharded)
    save_file(tensors | {"more": torch.ones(1)}, first)
    with pytest.raises(ValueError, match="not in the index: more"):
        hf.from_pretrained(sharded)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{first.name}: no such file, but {INDEX} lists it"):
        hf.from_pretrained(sharded)
    (sharded.parent / "outside.safetensors").write_bytes(content)
    edit_index(sharded, lambda files: files.update(dict.fromkeys(tensors, "../outside.safetensors")))
    with pytest.raises(ValueError, match=r"names of files beside it expected, got '\.\./outside\.safetensors'"):
        hf.from_pretrained(sharded)
    (sharded / INDEX).write_text('{"weight_map": [1]}')
    with pytest.raises(ValueError, match=rf"{INDEX}: a JSON object with a weight_map expected"):
        hf.from_pretrained(sharded)


# Which tensors ----------------------------------------------------------------------------------------------------


def edit_weights(folder: Path, **changes) -> None:
    weights = load_file(folder / WEIGHTS) | {name.replace("__", "."): t for name, t in changes.items()}
    save_file(weights, folder / WEIGHTS)


def test_unknown_tensors_are_named_and_left_out_if_asked(folder, ours):
    edit_weights(folder, cls__species__weight=torch.ones(3), cls__species__bias=torch.ones(3), other=torch.ones(1))
    with pytest.raises(ValueError, match=r"unknown: cls\.species\.bias, cls\.species\.weight, other") as error:
        hf.from_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    loaded = hf.from_pretrained(folder, drop=("cls.species", "other"))
    assert loaded.left_out == ("cls.species.bias", "cls.species.weight", "other")
    assert torch.equal(loaded.model.nsp.weight, ours.nsp.weight)
    for entry in ("cls.spec", "species", ""):
        with pytest.raises(ValueError, match=f"drop: .*model.safetensors has no tensor '{entry}'"):
            hf.from_pretrained(folder, drop=(entry,))


def test_a_dropped_head_is_not_there(folder):
    loaded = hf.from_pretrained(folder, drop=("cls.predictions",))
    assert loaded.model.head_names == ("nsp",) and len(loaded.left_out) == 5


def test_names_of_early_files_are_read_and_named_as_they_are(folder, ours):
    weights = load_file(folder / WEIGHTS)
    early = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for n, t in weights.items()}
    assert sum(name.endswith(".gamma") for name in early) == 6
    save_file(early, folder / WEIGHTS)
    assert_read(folder, ours)
    edit_weights(folder, extra__LayerNorm__gamma=torch.ones(2))
    with pytest.raises(ValueError, match=r"unknown: extra\.LayerNorm\.gamma$"):
        hf.from_pretrained(folder)


def test_a_decoder_of_its_own_is_refused(folder):
    for name, like in (("weight", (64, 32)), ("bias", (64,))):
        weights = load_file(folder / WEIGHTS)
        edit_weights(folder, **{f"cls__predictions__decoder__{name}": torch.zeros(like)})
        with pytest.raises(ValueError, match=rf"decoder\.{name} differs from .*an untied output layer"):
            hf.from_pretrained(folder)
        save_file(weights, folder / WEIGHTS)


# The hub ----------------------------------------------------------------------------------------------------------


def hub_with(monkeypatch, snapshot_download) -> None:
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


def test_a_name_is_looked_up_on_the_hub(folder, ours, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, PICKLE in allow_patterns or "pytorch_model*.bin" in allow_patterns))
        return str(folder)

    hub_with(monkeypatch, snapshot_download)
    assert_read(Path("someone/some-bert"), ours)
    assert asked == [("someone/some-bert", False)]  # pickles are asked for only if there is no safetensors file
    weights = load_file(folder / WEIGHTS)
    pickled(folder, weights)
    assert_read(Path("some-bert"), ours)
    assert asked[1:] == [("some-bert", False), ("some-bert", True)]


def test_without_the_hub_s_library_or_the_model_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"someone/bert: no such folder .*pip install huggingface_hub"):
        hf.from_pretrained("someone/bert")
    with pytest.raises(FileNotFoundError, match="nowhere/at/all: a model's folder expected"):
        hf.from_pretrained(tmp_path / "nowhere/at/all")

    def offline(name, allow_patterns):
        raise ConnectionError("no network\nhere")

    hub_with(monkeypatch, offline)
    with pytest.raises(FileNotFoundError, match=r"nor could the hub give such a model \(no network\)$"):
        hf.from_pretrained("someone/bert")
