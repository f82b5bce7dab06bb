"""GPT-1: agreement with transformers' OpenAIGPTLMHeadModel, the paper's details, saving, loading, compiling, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from parity import assert_same, assert_same_gradients, dropout_draws, randomise, seeds_for
from torch._dynamo.testing import CompileCounterWithBackend

from fastlm import models
from fastlm.integrations import transformers as hf
from fastlm.models import GPT1, GPT1Config

TINY = models.PRESETS["gpt1_tiny"]
NARROW = replace(TINY, layers=12, hidden=32, intermediate=64, vocab_size=64)
BATCH, LENGTH = 3, 21
LENGTHS = torch.tensor([LENGTH, 12, 1], dtype=torch.int32)


def theirs_and_ours() -> tuple[transformers.OpenAIGPTLMHeadModel, GPT1]:
    """Returns both models with three different dropout probabilities, so that a mix-up is found."""
    dropout = {"resid_pdrop": 0.1, "attn_pdrop": 0.2, "embd_pdrop": 0.3}
    config = transformers.OpenAIGPTConfig(vocab_size=101, n_positions=24, n_embd=32, n_layer=3, n_head=2, **dropout)
    theirs = transformers.OpenAIGPTLMHeadModel(config).double()
    randomise(theirs)
    ours = hf.convert(theirs.config.to_dict(), theirs.state_dict())
    expected = {"context": 24, "layers": 3, "hidden": 32, "heads": 2, "intermediate": 128}
    expected |= {"dropout": 0.1, "attention_dropout": 0.2, "embedding_dropout": 0.3}
    assert ours.config == GPT1Config(vocab_size=101, **expected)
    return theirs, ours


def batch(vocab_size: int, length: int = LENGTH, *, padded: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens, and the successor of each as its target."""
    text = torch.randint(0, vocab_size, (BATCH, length + 1), generator=torch.Generator().manual_seed(3))
    valid = torch.arange(length) < (LENGTHS[:, None] if padded else length)
    return text[:, :-1], text[:, 1:].where(valid, -100)


def loss_of(model, tokens, targets, **options) -> torch.Tensor:
    return model(tokens, targets=targets, **options).loss


def logits_of(model, tokens, **options) -> torch.Tensor:
    return model.logits("lm", model(tokens, **options).hidden)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_loss_logits_and_every_gradient_agree_with_transformers(training, padded, monkeypatch):
    theirs, ours = theirs_and_ours()
    theirs.train(training), ours.train(training)
    seeds, lengths = seeds_for(ours.config.layers), LENGTHS if padded else None
    tokens, targets = batch(101, padded=padded)
    valid = targets != -100
    with dropout_draws(seeds if training else seeds[:0], monkeypatch):
        logits = theirs(tokens, attention_mask=valid.long()).logits
    # Computed here, since transformers' loss is float32 for a model of any dtype.
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    expected.backward()
    output = ours(tokens, lengths=lengths, targets=targets, seeds=seeds)
    output.loss.backward()
    assert_same("loss", output.loss, expected)
    assert_same("logits", ours.logits("lm", output.hidden)[valid], logits[valid])
    assert_same_gradients(ours, theirs)


def test_saved_for_transformers_it_is_the_same_model_there(tmp_path):
    ours = models.build(TINY).eval()
    randomise(ours)
    hf.save(ours, tmp_path)
    theirs = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path).double().eval()
    tokens, _ = batch(TINY.vocab_size)
    assert_same("logits", logits_of(ours.double(), tokens), theirs(tokens).logits)


def test_saved_by_transformers_it_is_the_same_model_here(tmp_path):
    theirs, ours = theirs_and_ours()
    theirs.save_pretrained(tmp_path)
    loaded = hf.load(tmp_path)
    assert loaded.config == ours.config
    for (name, p), (other, q) in zip(loaded.named_parameters(), ours.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)


def test_an_encoder_without_the_head_and_with_old_buffers_is_the_same():
    theirs, ours = theirs_and_ours()
    weights = theirs.transformer.state_dict() | {"h.0.attn.bias": torch.ones(1, 1, 24, 24)}
    loaded = hf.convert(theirs.config.to_dict(), weights)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), ours.parameters(), strict=True))


def test_what_is_imported_shares_no_memory_with_where_it_came_from():
    theirs, ours = theirs_and_ours()
    before = theirs.transformer.tokens_embed.weight.clone()
    with torch.no_grad():
        for p in ours.parameters():
            p.zero_()
    assert torch.equal(theirs.transformer.tokens_embed.weight, before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"afn": "relu"}, "afn must be 'gelu' for a openai-gpt model, got 'relu'"),
        ({"model_type": "gpt2"}, "model_type must be 'openai-gpt' or 'bert', got 'gpt2'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings must be True"),
        ({"n_embd": None}, r"hidden must be an integer of at least 1 and below 2\^31, got None"),
    ],
)
def test_configurations_of_another_model_are_refused(change, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        hf.import_config(transformers.OpenAIGPTConfig().to_dict() | change)


def test_the_paper_s_configuration_is_transformers_default_one():
    assert hf.import_config(transformers.OpenAIGPTConfig().to_dict()) == models.PRESETS["gpt1"] == GPT1Config()


def test_parameters_and_flops_of_the_papers_model():
    with torch.device("meta"):
        theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig())
    paper = models.PRESETS["gpt1"]
    assert models.parameter_count(paper) == sum(p.numel() for p in theirs.parameters()) == 116_534_784
    assert round(paper.flops_per_token(512) / 1e6) == 724
    assert round(6 * paper.vocab_size * paper.hidden / 1e6) == 187  # the head's part


def test_initialisation_is_normal_of_one_width_at_every_depth():
    torch.manual_seed(0)
    model = models.build(replace(TINY, hidden=128, layers=3))
    for name, p in model.named_parameters():
        if p.ndim == 2:
            n = p.numel()
            assert abs(p.std().item() / 0.02 - 1) < 5 / (2 * n) ** 0.5, name
            assert abs(p.mean().item()) < 5 * 0.02 / n**0.5, name
            beyond = (p.abs() > 0.04).float().mean().item()  # 4.55% for a normal distribution
            assert abs(beyond - 0.0455) < 5 * (0.0455 / n) ** 0.5, name
        elif name.endswith("bias"):
            assert not p.any(), name
        else:
            assert (p == 1).all(), name


def test_the_head_is_the_embedding_and_there_is_no_norm_around_the_blocks():
    names = [name for name, _ in GPT1(TINY).named_parameters()]
    assert [name for name in names if not name.startswith("blocks.")] == ["embedding.word", "embedding.position"]
    assert sum("norm" in name for name in names) == 2 * 2 * TINY.layers


def test_save_and_load_give_the_same_model_and_leave_the_generator_alone(tmp_path):
    model = models.build(TINY).eval()
    model.save(tmp_path)
    state = torch.get_rng_state()
    for loaded in (GPT1.load(tmp_path), models.load(tmp_path)):
        assert loaded.config == TINY and type(loaded) is GPT1
        tokens, targets = batch(TINY.vocab_size)
        assert torch.equal(loss_of(loaded.eval(), tokens, targets), loss_of(model, tokens, targets))
        assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_causality_and_padding_leave_valid_positions_alone():
    model = models.build(TINY).eval()
    tokens, _ = batch(TINY.vocab_size)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % TINY.vocab_size
    first, second = logits_of(model, tokens), logits_of(model, changed)
    assert torch.equal(first[:, :12], second[:, :12]) and not torch.equal(first[:, 12:], second[:, 12:])
    padded = logits_of(model, changed, lengths=torch.tensor([12] * BATCH, dtype=torch.int32))
    torch.testing.assert_close(padded[:, :12], first[:, :12], rtol=1e-5, atol=1e-5)


def test_padding_attends_to_nothing():
    model = models.build(TINY).eval()
    tokens, _ = batch(TINY.vocab_size)
    changed = tokens.clone()
    changed[:, :12] = (changed[:, :12] + 1) % TINY.vocab_size
    lengths = torch.full((BATCH,), 12, dtype=torch.int32)
    first, second = (model(t, lengths=lengths).hidden for t in (tokens, changed))
    assert torch.equal(first[:, 12:], second[:, 12:]) and not torch.equal(first[:, :12], second[:, :12])


def compiled_and_eager(model, tokens, targets, seeds, compiled) -> list[tuple[torch.Tensor, torch.Tensor]]:
    def results(function):
        model.zero_grad()
        loss = loss_of(function, tokens, targets, seeds=seeds)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    return list(zip(results(compiled), results(model), strict=True))


def test_twelve_layers_compile_whole_and_give_the_same_bits():
    torch._dynamo.reset()
    model, seeds = models.build(NARROW).train(), seeds_for(NARROW.layers)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for ours, theirs in compiled_and_eager(model, *batch(NARROW.vocab_size), seeds, compiled):
        assert torch.equal(ours, theirs)


def test_inductor_agrees():
    torch._dynamo.reset()
    config = replace(NARROW, layers=1)
    model, seeds = models.build(config).train(), seeds_for(config.layers)
    compiled = torch.compile(model, fullgraph=True, backend="inductor")
    for ours, theirs in compiled_and_eager(model, *batch(config.vocab_size), seeds, compiled):
        # Inductor fuses and reorders float32 arithmetic: a few roundings of 6e-8 of the largest value.
        assert (ours - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def test_compiled_block_by_block_all_layers_share_one_graph():
    torch._dynamo.reset()
    model, seeds, counter = (
        models.build(NARROW).train(),
        seeds_for(NARROW.layers),
        CompileCounterWithBackend("aot_eager"),
    )
    tokens, targets = batch(NARROW.vocab_size)
    eager = loss_of(model, tokens, targets, seeds=seeds)
    for block in model.blocks:
        block.compile(fullgraph=True, backend=counter)
    assert torch.equal(loss_of(model, tokens, targets, seeds=seeds), eager)
    assert counter.frame_count == 1


def test_a_second_length_makes_one_graph_for_all_lengths():
    torch._dynamo.reset()
    model, counter = models.build(TINY).train(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for length in (16, 21, 32, 40):
        loss_of(compiled, *batch(TINY.vocab_size, length)).backward()
    assert counter.frame_count == 2


def test_each_forward_draws_fresh_seeds_in_training_alone():
    torch._dynamo.reset()
    model = models.build(TINY)
    tokens, targets = batch(TINY.vocab_size)
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        assert loss_of(forward, tokens, targets) != loss_of(forward, tokens, targets)
    state = torch.get_rng_state()
    model.eval()
    assert torch.equal(loss_of(model, tokens, targets), loss_of(model, tokens, targets))
    assert torch.equal(torch.get_rng_state(), state)


TOKENS = torch.zeros(2, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tokens", "options", "sentence"),
    [
        (TOKENS.int(), {}, "GPT1: tokens must be int64, got int32"),
        (TOKENS[0], {}, r"GPT1: tokens must be \(B, S\) with 1 <= S <= 64, got shape \(8,\)"),
        (TOKENS.new_zeros(1, 65), {}, r"1 <= S <= 64, got shape \(1, 65\)"),
        (TOKENS[:, :0], {}, r"1 <= S <= 64, got shape \(2, 0\)"),
        ([[1, 2]], {}, r"GPT1: tokens must be \(B, S\).* got list"),
        (TOKENS + 512, {}, r"GPT1: tokens must lie in \[0, 512\), got 512"),
        (TOKENS, {"targets": TOKENS[:, 1:]}, r"GPT1: targets must have shape \(2, 8\), got \(2, 7\)"),
        (TOKENS, {"targets": TOKENS - 1}, r"GPT1: targets must lie in \[0, 512\) or equal ignore_index -100, got -1"),
        (TOKENS, {"targets": TOKENS.float()}, "GPT1: targets must be int64, got float32"),
        (TOKENS, {"lengths": torch.tensor([8, 8])}, "GPT1: lengths must be int32, got int64"),
        (TOKENS, {"lengths": torch.tensor([9, 8], dtype=torch.int32)}, r"GPT1: lengths must lie in \[0, 9\), got 9"),
        (TOKENS, {"segments": TOKENS}, "GPT1: segments given, but the model has no segment embedding"),
        (TOKENS, {"labels": TOKENS}, r"GPT1: no head takes labels \(its heads take: targets\)"),
        (TOKENS, {"seeds": torch.zeros(3, dtype=torch.int64)}, r"seeds must have shape \(7,\), .* got \(3,\)"),
    ],
)
def test_bad_input_gets_a_sentence(tokens, options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        models.build(TINY)(tokens, **options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 3}, "hidden must be a multiple of heads, got hidden 64 and heads 3"),
        ({"layers": 0}, r"layers must be an integer of at least 1 and below 2\^31, got 0"),
        ({"vocab_size": "40478"}, r"vocab_size must be an integer of at least 1 and below 2\^31, got '40478'"),
        ({"dropout": 1.0}, r"^dropout must be in \[0, 1\), got 1.0"),
        ({"attention_dropout": 0.001}, "^attention_dropout is applied in steps of 1/256"),
        ({"hidden": 2**31}, "hidden must be an integer .* below .*, got 2147483648"),
        ({"eps": float("inf")}, "eps must be a number of at least 0, and finite, got inf"),
        ({"initializer_range": float("nan")}, "initializer_range must be a number of at least 0, and finite, got nan"),
        ({"eps": -1.0}, "eps must be a number of at least 0, and finite, got -1.0"),
    ],
)
def test_bad_configurations_get_a_sentence(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(TINY, **change)


@pytest.mark.gpu
def test_bf16_on_the_gpu_is_the_same_model_and_never_waits():
    model, seeds = models.build(NARROW).train(), seeds_for(NARROW.layers)
    tokens, targets = batch(NARROW.vocab_size)
    expected = loss_of(model, tokens, targets, seeds=seeds)
    expected_logits = logits_of(model, tokens, seeds=seeds).detach()
    model, tokens, targets, seeds = (x.cuda() for x in (model, tokens, targets, seeds))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            loss, logits = loss_of(model, tokens, targets, seeds=seeds), logits_of(model, tokens, seeds=seeds)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # The masks are equal; bfloat16 has 8 bits, and 24 residual steps are rounded to it.
    assert abs(loss.item() - expected.item()) < 0.02 * expected.item()
    error = (logits.float().cpu() - expected_logits).square().mean().sqrt()
    assert error < 0.05 * expected_logits.square().mean().sqrt()
    assert all(p.grad.isfinite().all() for p in model.parameters())
