"""The modules that replace torch.nn's: class, keys, values, gradients, and the behaviour around them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial

import pytest
import torch
from checks import _assert_close, evaluate
from torch import Tensor, nn
from torch.func import functional_call

from fastlm import nn as fnn

E, H, S, B = 32, 4, 9, 3
LENGTHS = torch.tensor([S, 4, 1])
PADDING = torch.arange(S) >= LENGTHS[:, None]
LEFT_TOO = PADDING.clone()
LEFT_TOO[2] = torch.arange(S) != S // 2  # causal queries in padding at the left see no key, which is NaN in torch
CAUSAL = torch.ones(S, S, dtype=torch.bool).triu(1)


def their_loss(**options) -> nn.Module:
    return getattr(nn, "LinearCrossEntropyLoss", fnn.LinearCrossEntropyLoss.__mro__[1])(E, 7, **options)


def our_loss(**options) -> nn.Module:
    return fnn.LinearCrossEntropyLoss(E, 7, **options)


def attention(lib, batch_first=True, **options) -> nn.Module:
    return lib.MultiheadAttention(E, H, batch_first=batch_first, **options)


def layer(lib, norm_first=False, batch_first=True, dropout=0.0) -> nn.Module:
    return lib.TransformerEncoderLayer(E, H, 2 * E, dropout, "gelu", batch_first=batch_first, norm_first=norm_first)


def encoder(lib, norm_first=False) -> nn.Module:
    return lib.TransformerEncoder(layer(lib, norm_first), 2, lib.LayerNorm(E), enable_nested_tensor=False)


MAKERS: dict[str, Callable] = {
    "LayerNorm": lambda lib: lib.LayerNorm(E, 1e-6),
    "LayerNorm of two dimensions": lambda lib: lib.LayerNorm((S, E)),
    "LayerNorm without affine": lambda lib: lib.LayerNorm(E, elementwise_affine=False),
    "LayerNorm without bias": lambda lib: lib.LayerNorm(E, bias=False),
    "GELU": lambda lib: lib.GELU(),
    "GELU tanh": lambda lib: lib.GELU("tanh"),
    "MultiheadAttention": attention,
    "MultiheadAttention sequence first": partial(attention, batch_first=False),
    "MultiheadAttention without bias": partial(attention, bias=False),
    "TransformerEncoderLayer": layer,
    "TransformerEncoderLayer norm first": partial(layer, norm_first=True),
    "TransformerEncoderLayer sequence first": partial(layer, batch_first=False),
    "TransformerEncoder": encoder,
    "TransformerEncoder norm first": partial(encoder, norm_first=True),
    "CrossEntropyLoss": lambda lib: lib.CrossEntropyLoss(),
    "LinearCrossEntropyLoss": lambda lib: (their_loss if lib is nn else our_loss)(bias=True),
}
WITH_PADDING = [name for name in MAKERS if name.startswith(("Multihead", "Transformer"))]
TARGET = torch.tensor([0, 3, -100, 6, 2, 5, 1, 4, 3])


def call(module: nn.Module, x: Tensor, padded: bool = False, causal: bool = False) -> Tensor:
    """Calls a module on x (B, S, E). Padded positions of the result are left out."""
    name = type(module).__name__
    if name.endswith("CrossEntropyLoss"):
        return module(x[0], TARGET)
    first = getattr(module, "layers", [module])[0]
    flip = not getattr(getattr(first, "self_attn", first), "batch_first", True)
    x = x.transpose(0, 1) if flip else x
    padding = (PADDING if causal else LEFT_TOO) if padded else None
    mask = CAUSAL if causal else None
    if name == "MultiheadAttention":
        y, _ = module(x, x, x, padding, False, mask, is_causal=causal)
    elif name.startswith("Transformer"):
        y = module(x, mask, padding, is_causal=causal)
    else:
        y = module(x)
    y = y.transpose(0, 1) if flip else y
    return y if padding is None else y[~padding]


def pair(name: str, seed: int = 1) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """Returns torch's module, ours, and the values of x and of their parameters, float64."""
    theirs, ours = MAKERS[name](nn), MAKERS[name](fnn)
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (B, S, E)} | {key.replace(".", "__"): p.shape for key, p in theirs.named_parameters()}
    values = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
    return theirs, ours, {key: v if key == "x" else v * 0.3 for key, v in values.items()}


def function(module: nn.Module, autocast: bool = False, **options: bool) -> Callable[..., Tensor]:
    def run(x: Tensor, **parameters: Tensor) -> Tensor:
        named = {key.replace("__", "."): p for key, p in parameters.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return functional_call(_Called(module), {f"module.{key}": p for key, p in named.items()}, (x, options))

    return run


class _Called(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, options: dict) -> Tensor:
        return call(self.module, x, **options)


CASES = [(name, {}) for name in MAKERS]
CASES += [(name, {"padded": padded, "causal": True}) for name in WITH_PADDING for padded in (False, True)]
CASES += [(name, {"padded": True}) for name in WITH_PADDING]
IDS = [" ".join((name, *options)) for name, options in CASES]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.filterwarnings("error")
def test_float64_values_and_gradients_are_torch_s(name, options, training):
    theirs, ours, tensors = pair(name)
    expected = evaluate(function(theirs.train(training), **options), tensors, torch.float64)
    actual = evaluate(function(ours.train(training), **options), tensors, torch.float64)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(function(ours, **options)(**tensors), expected["out0"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16 autocast"])
def test_errors_are_at_most_twice_torch_s(name, options, dtype):
    """Asserts the first bound of `checks`. In bfloat16 our parameters stay float32, under autocast; torch's do not.

    The errors are those of eight draws together: a bias of one draw has 32 values, whose largest error varies too much.
    """
    draws = []
    for seed in range(8):
        theirs, ours, tensors = pair(name, seed)
        wide = tuple(tensors) if dtype == torch.bfloat16 else ()
        actual = evaluate(function(ours, autocast=bool(wide), **options), tensors, dtype, wide)
        yardstick = evaluate(function(theirs, **options), tensors, dtype)
        draws.append((actual, yardstick, evaluate(function(theirs, **options), tensors, torch.float64)))
    for key in draws[0][0]:
        _assert_close(key, *(torch.stack([draw[i][key] for draw in draws]) for i in range(3)), "torch's module")


@pytest.mark.parametrize("name", MAKERS)
def test_class_keys_copies_and_meta_are_torch_s(name):
    torch.manual_seed(0)
    theirs = MAKERS[name](nn)
    torch.manual_seed(0)
    ours = MAKERS[name](fnn)
    assert isinstance(ours, type(theirs))
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(B, S, E)
    stream = io.BytesIO(pickle.dumps(ours))
    for again in (copy.deepcopy(ours), pickle.load(stream)):
        assert type(again) is type(ours)
        assert torch.equal(call(again, x), call(ours, x))
    with torch.device("meta"):
        meta = MAKERS[name](fnn)
        assert all(p.is_meta for p in meta.parameters())
        if not name.endswith("CrossEntropyLoss"):  # the targets of `call` are on the CPU
            assert call(meta, torch.randn(B, S, E)).is_meta


@pytest.mark.parametrize("name", [name for name in MAKERS if " " not in name])
def test_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    module, x = MAKERS[name](fnn), torch.randn(B, S, E)
    padded = name in WITH_PADDING
    compiled = torch.compile(partial(call, module, padded=padded), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), call(module, x, padded=padded))


@pytest.mark.parametrize("name", ["TransformerEncoderLayer", "MultiheadAttention"])
def test_dropout_is_in_training_alone_repeats_by_seed_and_follows_edits(name):
    module = layer(fnn, dropout=0.5) if name.startswith("Transformer") else attention(fnn, dropout=0.5)
    x, outs = torch.randn(B, S, E), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(call(module, x))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert torch.equal(call(module.eval(), x), call(module, x))
    module.train()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    torch.testing.assert_close(call(module, x), call(copy.deepcopy(module).eval(), x))


@pytest.mark.filterwarnings("error")
def test_the_keep_rate_of_the_fused_dropout_is_the_one_given():
    module, seen = layer(fnn), []
    module.dropout1.p = 0.25
    module.linear1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        module.self_attn.out_proj.weight.zero_()
        module.self_attn.out_proj.bias.fill_(1.0)
        module(torch.zeros(64, S, E))
    dropped = seen[0] < 0  # the layer norm of 0 (dropped) and 4/3 (kept)
    assert abs(dropped.double().mean().item() - 0.25) < 0.02


def test_an_unbatched_sequence_is_the_batch_of_one():
    for name in WITH_PADDING:
        module, x = MAKERS[name](fnn), torch.randn(S, E)
        one = module(x, x, x)[0] if name.startswith("Multihead") else module(x)
        torch.testing.assert_close(one, call(module, x[None])[0])


def test_without_a_word_on_need_weights_there_are_none():
    x = torch.randn(B, S, E)
    assert attention(fnn)(x, x, x)[1] is None
    assert fnn.MultiheadAttention(E, H)(x, x, x, is_causal=True)[1] is None


def test_lengths_replace_the_mask():
    module, x, lengths = attention(fnn), torch.randn(B, S, E), LENGTHS.int()
    assert torch.equal(module(x, x, x, lengths=lengths)[0], module(x, x, x, PADDING)[0])
    with pytest.raises(ValueError, match="give key_padding_mask or lengths, not both"):
        module(x, x, x, PADDING, lengths=lengths)


def test_a_replaced_linear_layer_is_called():
    class Adapter(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    theirs, ours, x = layer(nn), layer(fnn), torch.randn(B, S, E)
    for module in (theirs, ours):
        module.linear1, module.linear2 = Adapter(E, 2 * E), Adapter(2 * E, E)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


def test_class_weights_and_empty_means_of_the_loss():
    weight = torch.rand(7)
    ours, theirs = fnn.LinearCrossEntropyLoss(E, 7, weight=weight), their_loss(weight=weight)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(S, E)
    torch.testing.assert_close(ours(x, TARGET), theirs(x, TARGET))
    assert ours(x, torch.full((S,), -100)).item() == 0.0


@pytest.mark.parametrize("shape", [(), (2,)], ids=["one", "two"])
def test_the_loss_for_a_torch_without_one_is_torch_s(shape):
    from fastlm.nn.loss import _Owning

    if not hasattr(nn, "LinearCrossEntropyLoss"):
        pytest.skip("this torch has no LinearCrossEntropyLoss to compare with")
    plain, theirs = _Owning(E, 7, out_features=shape, bias=True), their_loss(out_features=shape, bias=True)
    plain.load_state_dict(theirs.state_dict())
    target = TARGET if not shape else torch.stack([TARGET, TARGET.flip(0)], 1)
    x = torch.randn(S, E)
    torch.testing.assert_close(plain(x, target), theirs(x, target))
