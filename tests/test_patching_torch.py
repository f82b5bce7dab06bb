"""fastlm.patch on torch.nn's attention and encoder: they compute as before, on the kernels where these serve a call."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import fastlm

E, H, S, B = 16, 2, 6, 3
VALID = torch.arange(S) < torch.tensor([S, 4, 2])[:, None]


def encoder(**options) -> nn.TransformerEncoder:
    options = {"activation": "gelu", "batch_first": True, "dropout": 0.0, "dtype": torch.float64} | options
    layer = nn.TransformerEncoderLayer(E, H, 2 * E, **options)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(E, dtype=torch.float64), enable_nested_tensor=False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, S, E, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_an_encoder_gives_the_same_outputs_and_gradients_without_a_warning(x, norm_first, causal):
    model = encoder(norm_first=norm_first)
    expected, options = copy.deepcopy(model), {"src_key_padding_mask": ~VALID, "is_causal": causal}
    options["mask"] = torch.ones(S, S, dtype=torch.bool).triu(1) if causal else None
    report = fastlm.patch(model)
    assert len(report.replaced) == 1 + 2 * 4 + 1 and not report.left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = model(x, **options)[VALID]
    theirs = expected(x, **options)[VALID]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours.sin().sum().backward()
    theirs.sin().sum().backward()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    assert "fastlm" not in repr(type(pickle.loads(pickle.dumps(model)).layers[0]).__name__)
    fastlm.unpatch(model)
    assert all(type(m).__module__.startswith("torch.") for m in model.modules())
    torch.testing.assert_close(model(x, **options)[VALID], theirs, rtol=0, atol=0)


def test_attention_keeps_torchs_default_of_returning_weights(x):
    model = nn.MultiheadAttention(E, H, batch_first=True, dtype=torch.float64)
    expected = model(x, x, x)
    fastlm.patch(model)
    with pytest.warns(UserWarning, match="need_weights=True asks for the attention probabilities"):
        found = model(x, x, x)
    torch.testing.assert_close(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = model(x, x, x, need_weights=False)
    torch.testing.assert_close(found[0], expected[0])
    assert found[1] is None
    fastlm.unpatch(model)
    assert not {"backend", "_said", "fastlm_options"} & vars(model).keys()


def test_what_cannot_be_served_is_named_and_stays(x):
    class Own(nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Tensor:
            return 2 * x

    model = nn.ModuleList([
        nn.MultiheadAttention(E, H, add_zero_attn=True),
        nn.MultiheadAttention(512, 2),
        Own(E, H, 2 * E, batch_first=True, dropout=0.0, dtype=torch.float64),
    ])  # fmt: skip
    expected = model[2](x)
    reasons = [entry.reason for entry in fastlm.patch(model).left]
    assert reasons == [
        "add_zero_attn=True adds a key that has no token",
        "its head_dim is 256, and the kernels take up to 128",
        "it is a subclass of torch.nn.TransformerEncoderLayer",
    ]
    torch.testing.assert_close(model[2](x), expected)


def test_switches_leave_parts_as_they_are(x):
    model = encoder()
    expected = model(x)
    for off in ("attention", "layer_norm", "gelu"):
        report = fastlm.patch(model, **{off: False})
        assert report.count(off) == 0
        torch.testing.assert_close(model(x), expected)
        fastlm.unpatch(model)


def test_a_loss_of_its_own_is_computed_by_the_op_and_one_with_a_forward_stays(x):
    class Focal(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input, target).square()

    target, weight = torch.tensor([[0, 3, -100, 5, 1, 2]]).expand(B, S), torch.rand(E, dtype=torch.float64)
    model = nn.ModuleDict({"plain": nn.CrossEntropyLoss(weight), "focal": Focal()})
    logits = x.transpose(1, 2).requires_grad_()
    expected = {name: loss(logits, target) for name, loss in model.items()}
    report = fastlm.patch(model)
    assert [r.path for r in report.replaced] == ["plain"]
    assert [(part.path, part.reason) for part in report.left] == [("focal", "its class has a forward of its own")]
    for name, loss in model.items():
        torch.testing.assert_close(loss(logits, target), expected[name])
        theirs = torch.autograd.grad(expected[name], logits)
        torch.testing.assert_close(torch.autograd.grad(loss(logits, target), logits), theirs)
    fastlm.unpatch(model)
    assert type(model["plain"]) is nn.CrossEntropyLoss
