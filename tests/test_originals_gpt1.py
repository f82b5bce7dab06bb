"""OpenAI's GPT-1 files, made of transformers' weights: the same logits, and the same bytes after a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from parity import BOUND, randomise

from fastlm import cli
from fastlm.inference.load import load_pretrained
from fastlm.integrations.originals import read_openai, write_openai
from fastlm.models import GPT1, GPT1Config, load

MODULES = ("attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")  # in the files' order


def written(folder: Path) -> transformers.OpenAIGPTLMHeadModel:
    """Writes the files of a model of transformers, cut at odd places, and a small vocabulary."""
    config = transformers.OpenAIGPTConfig(vocab_size=9, n_positions=16, n_embd=128, n_layer=2, n_head=2)
    theirs = transformers.OpenAIGPTLMHeadModel(config).eval()
    randomise(theirs)
    state = theirs.transformer.state_dict()
    names = [f"h.{i}.{module}.{kind}" for i in range(2) for module in MODULES for kind in ("weight", "bias")]
    arrays = [state[name] for name in ("positions_embed.weight", "tokens_embed.weight", *names)]
    shapes = [[1, *t.shape] if t.ndim == 2 and i > 1 else list(t.shape) for i, t in enumerate(arrays)]
    flat = torch.cat([t.flatten() for t in arrays]).numpy()
    folder.mkdir()
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    for number, part in enumerate(np.split(flat, [7, 1000, 1001, 5000, 90000, 90010, 100000, 200000, 300000])):
        np.save(folder / f"params_{number}.npy", part)
    entries = ("<unk>", "a", "b", "a</w>", "b</w>", "ab</w>", "aa", "ba</w>", "\n</w>")
    (folder / "encoder_bpe_40000.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\na b</w>\na a\nb a</w>\n")
    return theirs


def joined(folder: Path) -> bytes:
    return np.concatenate([np.load(folder / f"params_{n}.npy", allow_pickle=False) for n in range(10)]).tobytes()


@torch.no_grad()
def test_the_logits_are_those_of_transformers(tmp_path):
    theirs = written(tmp_path / "openai").double()
    ours = read_openai(tmp_path / "openai").double()
    tokens = torch.randint(9, (2, 16))
    logits, expected = ours.logits("lm", ours(tokens).hidden), theirs(tokens).logits
    assert (logits - expected).abs().max() <= BOUND * expected.abs().max()
    assert ours.config.heads == 2 and ours.config.context == 16 and not ours.training


def test_round_trips_are_exact_by_the_command(tmp_path, capsys):
    theirs = written(tmp_path / "openai")
    steps = (
        ("openai", "ours", []), ("ours", "back", ["--to", "openai"]), ("openai", "hf", ["--to", "transformers"]),
        ("hf", "again", ["--to", "openai"]),
    )  # fmt: skip
    for source, target, more in steps:
        assert cli.main(["convert", str(tmp_path / source), str(tmp_path / target), *more]) == 0, capsys.readouterr()
    for name in ("back", "again"):
        assert joined(tmp_path / name) == joined(tmp_path / "openai")
        for file in ("params_shapes.json", "encoder_bpe_40000.json"):
            assert json.loads((tmp_path / name / file).read_text()) == json.loads(
                (tmp_path / "openai" / file).read_text()
            )
        assert (tmp_path / name / "vocab_40000.bpe").read_text() == (tmp_path / "openai/vocab_40000.bpe").read_text()
    read = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "hf")
    assert all(torch.equal(p, q) for p, q in zip(read.parameters(), theirs.parameters(), strict=True))
    assert load_pretrained(tmp_path / "ours")[1].encode("Ab aab c") == [5, 1, 5, 0]
    assert "do not hold the dropout rates" in capsys.readouterr().out
    assert load(tmp_path / "ours").head_names == ("lm",)


def test_damaged_files_are_named(tmp_path):
    written(tmp_path / "openai")
    folder = tmp_path / "openai"
    shapes, last = json.loads((folder / "params_shapes.json").read_text()), np.load(folder / "params_9.npy")
    for broken, sentence in (
        (last[:-1], "numbers expected, as params_shapes.json says"),
        (last.astype(np.float64), r"params_9\.npy: a vector of float32 expected, got float64"),
    ):
        np.save(folder / "params_9.npy", broken)
        with pytest.raises(ValueError, match=sentence):
            read_openai(folder)
    np.save(folder / "params_9.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"params_9\.npy: not an array of numpy"):
        read_openai(folder)
    (folder / "params_9.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"params_9\.npy: no such file"):
        read_openai(folder)
    for wrong, sentence in (
        ([shapes[1], shapes[0], *shapes[3:]], "12 arrays per layer expected, got 25"),
        ([*shapes[:4], [1, 64, 128], *shapes[5:]], r"shape 4, of blocks\.0\.attention\.out\.weight: \[1, 128, 128\]"),
    ):
        (folder / "params_shapes.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=sentence):
            read_openai(folder)


@pytest.mark.parametrize(("field", "value"), [("heads", 4), ("eps", 1e-6), ("intermediate", 256)])
def test_a_model_that_the_format_cannot_hold_is_refused(field, value, tmp_path):
    sizes = {"vocab_size": 9, "context": 8, "layers": 1, "hidden": 128, "heads": 2, "intermediate": 512}
    with pytest.raises(ValueError, match=f"{field} must be .* in OpenAI's format"):
        write_openai(GPT1(GPT1Config(**{**sizes, field: value})), tmp_path / "out")
    assert not (tmp_path / "out").exists()
