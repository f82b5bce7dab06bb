"""The modules against torch's own modules in float64; their seeds, names and representations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlm
from fastlm import models
from fastlm import nn as fnn
from fastlm.dropout import draw_seeds, row_mask

E, H, S, B = 32, 4, 9, 3
DOUBLE = {"dtype": torch.float64}


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)), dtype=torch.float64)


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_layer_norm_is_torch_s_and_reads_its_state_dict():
    theirs = randomised(nn.LayerNorm(E, eps=1e-6, **DOUBLE))
    ours = fnn.LayerNorm(E, eps=1e-6, **DOUBLE)
    ours.load_state_dict(theirs.state_dict())
    close(ours(values(B, S, E)), theirs(values(B, S, E)))
    assert [name for name, _ in fnn.LayerNorm(E, bias=False).named_parameters()] == ["weight"]


def test_add_layer_norm_adds_bias_and_residual_before_it_normalises():
    module = randomised(fnn.AddLayerNorm(E, eps=1e-6, **DOUBLE))
    x, residual, bias = values(B, S, E), values(S, B, E).transpose(0, 1), values(E)
    total = x + bias + residual
    expected = F.layer_norm(total, (E,), module.weight, module.bias, 1e-6)
    close(module(x, residual, bias=bias), expected)
    close(module(x + bias, residual), expected)
    module.return_sum = True
    normalised, summed = module(x, residual, bias=bias)
    close(normalised, expected), close(summed, total)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_modules(approximate):
    def gelu(x: Tensor) -> Tensor:
        return F.gelu(x, approximate=approximate)

    options = {"approximate": approximate, **DOUBLE}
    x, bias = values(B, S, E), values(E)
    biased = randomised(fnn.BiasGELU(E, **options))
    close(biased(x), gelu(x + biased.bias))
    after = randomised(fnn.GELULayerNorm(E, **options))
    close(after(x, bias=bias), F.layer_norm(gelu(x + bias), (E,), after.weight, after.bias))
    before = randomised(fnn.LayerNormGELU(E, **options))
    close(before(x), gelu(F.layer_norm(x, (E,), before.weight, before.bias)))
    mlp = randomised(fnn.MLP(E, 3 * E, **options))
    close(mlp(x), mlp.down(gelu(mlp.up(x))))


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_self_attention_is_torch_s(causal):
    theirs = randomised(nn.MultiheadAttention(E, H, batch_first=True, **DOUBLE))
    ours = fnn.SelfAttention(E, H, causal=causal, **DOUBLE)
    names = {"qkv.weight": "in_proj_weight", "qkv.bias": "in_proj_bias"}
    names |= {"out.weight": "out_proj.weight", "out.bias": "out_proj.bias"}
    ours.load_state_dict({name: theirs.state_dict()[other] for name, other in names.items()})
    x, lengths = values(B, S, E), torch.tensor([S, 4, 1], dtype=torch.int32)
    valid = torch.arange(S) < lengths[:, None]
    mask = torch.ones(S, S, dtype=torch.bool).triu(1) if causal else None
    expected, _ = theirs(x, x, x, key_padding_mask=~valid, attn_mask=mask)
    close(ours(x, lengths=lengths)[valid], expected[valid])


def test_self_attention_on_packed_rows_draws_the_masks_of_the_padded_batch():
    module = randomised(fnn.SelfAttention(E, H, causal=True, dropout=0.3, **DOUBLE))
    x, lengths, seed = values(B, S, E), torch.tensor([S, 4, 1], dtype=torch.int32), draw_seeds(1)
    valid = torch.arange(S) < lengths[:, None]
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    packed = module(x[valid], cu_seqlens=cu_seqlens, max_seqlen=S, seed=seed)
    close(packed, module(x, lengths=lengths, seed=seed)[valid])


@pytest.mark.parametrize(
    "make", [lambda **o: fnn.SelfAttention(E, H, **o), lambda **o: fnn.MLP(E, 4 * E, **o)], ids=["attention", "mlp"]
)
def test_return_bias_leaves_the_last_bias_to_the_next_module(make):
    whole, split = randomised(make(**DOUBLE)), randomised(make(return_bias=True, **DOUBLE))
    split.load_state_dict(whole.state_dict())
    y, bias = split(values(B, S, E))
    close(y + bias, whole(values(B, S, E)))


def test_embedding_layer_norm_is_the_normalised_sum_of_the_tables():
    module = randomised(fnn.EmbeddingLayerNorm(50, 12, E, segments=2, eps=1e-6, **DOUBLE))
    tokens, segments = torch.randint(0, 50, (B, S)), torch.randint(0, 2, (B, S))
    total = module.word[tokens] + module.position[:S] + module.segment[segments]
    expected = F.layer_norm(total, (E,), module.norm.weight, module.norm.bias, 1e-6)
    close(module(tokens, segments), expected)
    reverse = torch.arange(S - 1, -1, -1)
    mirrored = module(tokens.flip(1), segments.flip(1), position_ids=reverse.expand(B, S))
    close(mirrored.flip(1), expected)
    plain = randomised(fnn.EmbeddingLayerNorm(50, 12, E, layer_norm=False, **DOUBLE))
    close(plain(tokens), plain.word[tokens] + plain.position[:S])
    assert [name for name, _ in plain.named_parameters()] == ["word", "position"]


def test_embedding_tables_start_small():
    module = fnn.EmbeddingLayerNorm(2000, 12, E)
    assert abs(module.word.std().item() - 0.02) < 0.001


def test_dropout_is_the_row_ops_mask_forward_and_backward():
    module, seed, first_row = fnn.Dropout(0.25).train(), draw_seeds(1), torch.tensor([2**33 + 5])
    x, dy = values(B, S, E).requires_grad_(), values(B, S, E) + 1
    kept = row_mask(seed, B * S, E, 192, first_row).view(x.shape)
    y = module(x, seed=seed, first_row=first_row)
    y.backward(dy)
    close(y, x * kept * (256 / 192))
    close(x.grad, dy * kept * (256 / 192))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_linear_cross_entropy_is_linear_and_cross_entropy(reduction):
    options = {"reduction": reduction, "label_smoothing": 0.1, "ignore_index": -1}
    x, weight, bias, targets = values(B, S, E), values(17, E), values(17), torch.randint(-1, 17, (B, S))
    expected = nn.CrossEntropyLoss(**options)(F.linear(x, weight, bias).flatten(0, 1), targets.flatten())
    loss = fnn.LinearCrossEntropy(**options)(x, weight, targets, bias=bias)
    close(loss.flatten(), expected.flatten())
    assert loss.shape == (targets.shape if reduction == "none" else ())


SITES = {
    "Dropout": (fnn.Dropout(0.5), (torch.randn(B, S, E),)),
    "AddLayerNorm": (fnn.AddLayerNorm(E, dropout=0.5), (torch.ones(B, S, E), torch.zeros(B, S, E))),
    "SelfAttention": (fnn.SelfAttention(E, H, dropout=0.5), (torch.randn(B, S, E),)),
    "EmbeddingLayerNorm": (fnn.EmbeddingLayerNorm(50, S, E, dropout=0.5), (torch.randint(0, 50, (B, S)),)),
}


@pytest.mark.parametrize("name", SITES)
def test_dropout_is_in_training_alone_with_the_seed_given_or_one_of_its_own(name):
    module, inputs = SITES[name]
    module.train()
    assert not torch.equal(module(*inputs), module(*inputs))
    first, second = draw_seeds(2)[:, None]
    assert torch.equal(module(*inputs, seed=first), module(*inputs, seed=first))
    assert not torch.equal(module(*inputs, seed=first), module(*inputs, seed=second))
    torch.manual_seed(0)
    drawn, state = draw_seeds(1), torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(module(*inputs), module(*inputs, seed=drawn))
    assert torch.equal(torch.get_rng_state(), state)  # one draw, and none if the seed is given
    module.eval()
    assert torch.equal(module(*inputs, seed=first), module(*inputs))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_block_of_modules_learns():
    torch.manual_seed(0)
    attention, norm = fnn.SelfAttention(E, H, return_bias=True), fnn.AddLayerNorm(E, dropout=0.1)
    head, loss = nn.Linear(E, 7), fnn.LinearCrossEntropy()
    parameters = [p for m in (attention, norm, head) for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    x, targets = torch.randn(B, S, E), torch.randint(0, 7, (B, S))
    losses = []
    for _ in range(60):
        y, bias = attention(x)
        value = loss(norm(y, x, bias=bias), head.weight, targets, bias=head.bias)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[0] > 1.5 and losses[-1] < 0.5


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (fnn.LayerNorm(E, bias=False), repr(nn.LayerNorm(E, bias=False))),
        (fnn.AddLayerNorm(E, dropout=0.1), "AddLayerNorm(32, eps=1e-05, dropout=0.1)"),
        (fnn.AddLayerNorm(E, return_sum=True), "AddLayerNorm(32, eps=1e-05, dropout=0.0, return_sum=True)"),
        (fnn.GELULayerNorm(E), "GELULayerNorm(32, eps=1e-05, approximate='tanh')"),
        (fnn.LayerNormGELU(E, approximate="none"), "LayerNormGELU(32, eps=1e-05, approximate='none')"),
        (fnn.BiasGELU(E), "BiasGELU(32, approximate='tanh')"),
        (fnn.MLP(E, 64), "approximate='tanh'\n"),
        (fnn.Dropout(0.1), "Dropout(0.1)"),
        (fnn.SelfAttention(E, H, causal=True), "heads=4, causal=True, dropout=0.0\n"),
        (fnn.EmbeddingLayerNorm(50, 12, E, segments=2), "50, 12, 32, segments=2, dropout=0.0\n"),
        (fnn.LinearCrossEntropy(reduction="sum"), "LinearCrossEntropy(reduction='sum', ignore_index=-100, "),
    ],
)
def test_representations_say_what_the_module_is(module, text):
    assert text in repr(module)


def test_the_backend_is_the_one_asked_for():
    x = torch.randn(2, E)
    with pytest.raises(RuntimeError, match=r"bias_gelu: backend 'cuda' cannot serve this call"):
        fnn.BiasGELU(E, backend="cuda").double()(x.double())
    assert torch.equal(fnn.BiasGELU(E, backend="reference")(x), fastlm.bias_gelu(x, backend="reference"))


REFUSED = [
    (lambda: fnn.LayerNorm(0), "LayerNorm: normalized_shape must be at least 1, got 0"),
    (lambda: fnn.LayerNorm(E, eps=-1), "LayerNorm: eps must be at least 0, got -1"),
    (lambda: fnn.LayerNorm(E, eps="small"), "LayerNorm: eps must be a number, got str"),
    (lambda: fnn.AddLayerNorm(2.5), "AddLayerNorm: hidden must be an integer, got float"),
    (lambda: fnn.AddLayerNorm(E, dropout="much"), "AddLayerNorm: dropout must be a number, got str"),
    (lambda: fnn.GELULayerNorm(E, approximate="erf"), "GELULayerNorm: approximate must be 'tanh' or 'none'"),
    (lambda: fnn.LayerNormGELU(-3), "LayerNormGELU: hidden must be at least 1, got -3"),
    (lambda: fnn.BiasGELU(0), "BiasGELU: features must be at least 1, got 0"),
    (lambda: fnn.BiasGELU(E, approximate=True), "BiasGELU: approximate must be 'tanh' or 'none'"),
    (lambda: fnn.MLP(E, 0), "MLP: intermediate must be at least 1, got 0"),
    (lambda: fnn.MLP(0, E), "MLP: hidden must be at least 1, got 0"),
    (lambda: fnn.SelfAttention(E, 0), "SelfAttention: heads must be at least 1, got 0"),
    (lambda: fnn.SelfAttention(0, 1), "SelfAttention: hidden must be at least 1, got 0"),
    (lambda: fnn.SelfAttention(E, H, backend="gpu"), "backend must be one of auto, reference, .*, got 'gpu'"),
    (lambda: fnn.EmbeddingLayerNorm(0, 12, E), "EmbeddingLayerNorm: vocab_size must be at least 1, got 0"),
    (lambda: fnn.EmbeddingLayerNorm(50, 12, E, segments=-1), "EmbeddingLayerNorm: segments must be at least 0, got -1"),
    (lambda: fnn.LinearCrossEntropy(reduction="max"), "LinearCrossEntropy: reduction must be one of mean, sum, none"),
    (lambda: fnn.LinearCrossEntropy(label_smoothing=2), r"LinearCrossEntropy: label_smoothing must be in \[0, 1\]"),
    (lambda: fnn.MaskedLMHead(0, E, gelu="tanh", eps=0), "MaskedLMHead: vocab_size must be at least 1, got 0"),
    (lambda: fnn.NextSentenceHead(0), "NextSentenceHead: hidden must be at least 1, got 0"),
    (lambda: fnn.NextSentenceHead(E, backend=None), "backend must be one of auto, reference, .*, got None"),
]


@pytest.mark.parametrize(("make", "sentence"), REFUSED, ids=[sentence[:40] for _, sentence in REFUSED])
def test_a_module_that_no_call_could_use_is_not_made(make, sentence):
    with pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        make()


MASKED = {"gelu": "tanh", "eps": 1e-12}
MISFITS = [
    ("bert_tiny", lambda: fnn.NextSentenceHead(E), "NextSentenceHead: hidden 64 of the model expected, got 32"),
    ("bert_tiny", lambda: fnn.MaskedLMHead(512, E, **MASKED), "MaskedLMHead: hidden 64 of the model expected, got 32"),
    (
        "gpt1_tiny",
        lambda: fnn.MaskedLMHead(9, 64, **MASKED),
        "MaskedLMHead: vocab_size 512 of the model expected, got 9",
    ),
    (
        "gpt1_tiny",
        lambda: fnn.NextSentenceHead(64),
        r"NextSentenceHead: a model with a pooling of \[CLS\] expected, got a",
    ),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("preset", "head", "sentence"), MISFITS)
def test_a_head_that_does_not_fit_the_model_is_refused(device, preset, head, sentence):
    with torch.device(device), pytest.raises((TypeError, ValueError), match=f"^{sentence}"):
        models.build(models.PRESETS[preset], {"own": head()})


def test_a_head_of_another_paper_that_fits_is_taken():
    model = models.build(models.PRESETS["gpt1_tiny"], {"own": fnn.MaskedLMHead(512, 64, **MASKED)})
    assert model.head_names == ("own",)


def test_an_unknown_backend_makes_no_model():
    for build in (models.build, models.GPT1):
        with pytest.raises(ValueError, match="backend must be one of auto, .*, got 'tpu'"):
            build(models.PRESETS["gpt1_tiny"], {}, backend="tpu")


def test_what_makes_no_sense_is_refused_when_the_module_is_made():
    with pytest.raises(ValueError, match="hidden must be a multiple of heads, got hidden=32 and heads=5"):
        fnn.SelfAttention(E, 5)
    for make in (fnn.AddLayerNorm, lambda n, **o: fnn.SelfAttention(n, H, **o)):
        with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.5"):
            make(E, dropout=1.5)
    with pytest.raises(ValueError, match="steps of 1/256"):
        fnn.EmbeddingLayerNorm(50, 12, E, dropout=0.001)
