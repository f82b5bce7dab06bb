"""The optimizers against torch's and against the papers' formulas computed in float64."""

import pytest
import torch
from torch import nn

from fastlm.train.optim import (
    BertAdam,
    FusedAdam,
    bias_corrected,
    build_optimizer,
    clip_and_step,
    clip_global_norm,
    decay_groups,
)

GPT1 = {"kind": "adamw", "lr": 2.5e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
BERT = {"kind": "bert", "lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 11)
        self.head.weight = self.embedding.weight


def make(seed=0):
    torch.manual_seed(seed)
    return Small().double()


def set_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def test_decay_is_on_every_matrix_and_nothing_else():
    model = make()
    decayed, other = decay_groups(model, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"embedding.weight", "linear.weight"}
    assert {names[id(p)] for p in other["params"]} == {"linear.bias", "norm.weight", "norm.bias", "head.bias"}
    assert (decayed["weight_decay"], other["weight_decay"]) == (0.01, 0.0)


def by_formula(model, *, kind, lr, betas, eps, weight_decay, steps):
    """Both papers' Adam, one element at a time in Python's floats."""
    weights = {}
    for name, p in model.named_parameters():
        decay = weight_decay if p.ndim == 2 else 0.0
        for i, w in enumerate(p.detach().flatten().tolist()):
            weights[name, i] = [w, 0.0, 0.0, decay]
    for step in range(steps):
        set_gradients(model, step)
        correction = (1 - betas[0] ** (step + 1), 1 - betas[1] ** (step + 1)) if kind == "adamw" else (1.0, 1.0)
        for name, p in model.named_parameters():
            for i, g in enumerate(p.grad.flatten().tolist()):
                w, m, v, decay = weights[name, i]
                m = betas[0] * m + (1 - betas[0]) * g
                v = betas[1] * v + (1 - betas[1]) * g * g
                w -= lr * (m / correction[0] / ((v / correction[1]) ** 0.5 + eps) + decay * w)
                weights[name, i] = [w, m, v, decay]
    return {
        name: torch.tensor([weights[name, i][0] for i in range(p.numel())], dtype=p.dtype).view_as(p)
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("recipe", [GPT1, BERT], ids=["gpt1", "bert"])
def test_five_updates_agree_with_the_formula(recipe):
    model = make()
    expected = by_formula(make(), **recipe, steps=5)
    optimizer = build_optimizer(model, **recipe)
    for step in range(5):
        set_gradients(model, step)
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_bert_adam_is_not_bias_corrected():
    # After one step m = (1 - beta1) g and v = (1 - beta2) g^2: the move is 0.1 / sqrt(0.001) = 3.16 rates.
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, -2.0, 5.0])
    BertAdam([weight], lr=1e-4, weight_decay=0.0).step()
    torch.testing.assert_close(
        weight.detach(), torch.tensor([-1.0, 1.0, -1.0]) * 1e-4 * 0.1 / 0.001**0.5, rtol=1e-4, atol=0
    )


def test_bert_adam_skips_parameters_without_gradient_and_takes_a_closure():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = BertAdam([used, unused], lr=0.1)

    def closure():
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (used < 1).all() and (unused == 1).all() and unused not in optimizer.state


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="optimizer.*'sgd'"):
        build_optimizer(make(), **{**GPT1, "kind": "sgd"})


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clipping_agrees_with_torch(scale):
    ours, theirs = make(), make()
    for model in (ours, theirs):
        set_gradients(model, 7)
        for p in model.parameters():
            p.grad *= scale
    norm = clip_global_norm(ours.parameters(), 1.0)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-6, atol=0)  # torch adds 1e-6 to the norm
    clipped = torch.cat([p.grad.flatten() for p in ours.parameters()]).norm().item()
    assert clipped == pytest.approx(min(1.0, expected.item()), rel=1e-6)


def test_clipping_leaves_small_gradients_bit_for_bit():
    model = make()
    set_gradients(model, 1)
    before = []
    for p in model.parameters():
        p.grad *= 1e-3
        before.append(p.grad.clone())
    clip_global_norm(model.parameters(), 1.0)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


def test_clipping_shows_a_gradient_that_is_not_finite():
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([1.0, float("nan"), 2.0])
    assert not clip_global_norm([weight], 1.0).isfinite()


@pytest.mark.parametrize("kind", ["adamw", "bert", "fused reference", "fused cuda"])
def test_an_infinite_max_norm_clips_nothing(kind):
    """The update is that of the optimizer alone, and the norm is reported."""
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-6}

    def build(model):
        if kind.startswith("fused"):
            groups, backend = decay_groups(model, 0.1), kind.split()[1]
            return FusedAdam(groups, **options, bias_correction=True, backend=backend)
        return build_optimizer(model, kind=kind, weight_decay=0.1, **options)

    ours, other = make().float(), make().float()
    set_gradients(ours, 1), set_gradients(other, 1)
    norm = clip_and_step(build(ours), float("inf"))
    build(other).step()
    gradients = torch.cat([p.grad.flatten() for p in other.parameters()])
    assert norm.item() == pytest.approx(gradients.norm().item(), rel=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("max_norm", [1.0, float("inf")])
@pytest.mark.parametrize("backend", [None, "reference", "cuda"])
def test_an_infinite_norm_is_reported(backend, max_norm):
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([1.0, float("inf"), 2.0])
    if backend is None:
        norm = clip_global_norm([weight], max_norm)
    else:
        options = {"betas": (0.9, 0.99), "eps": 1e-6, "bias_correction": True, "backend": backend}
        norm = FusedAdam([weight], lr=1e-2, **options).step(max_norm=max_norm)
    assert norm.item() == float("inf")


def test_clipping_without_gradients_is_an_error():
    with pytest.raises(ValueError, match="params: none of them has a gradient"):
        clip_global_norm([nn.Parameter(torch.ones(3))], 1.0)


@pytest.mark.parametrize("kind", ["adamw", "bert"])
@pytest.mark.parametrize("backend", ["reference", "cuda"])
def test_fused_adam_makes_the_same_updates_and_the_same_state(kind, backend):
    """Three clipped updates beside those of torch's AdamW or BertAdam, and a fourth from the others' state."""
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
    model, other = make().float(), make().float()
    fused = FusedAdam(decay_groups(model, 0.01), **options, bias_correction=kind == "adamw", backend=backend)
    expected = build_optimizer(other, kind=kind, weight_decay=0.01, **options)
    assert type(expected) is {"adamw": torch.optim.AdamW, "bert": BertAdam}[kind]  # no kernel serves the CPU
    for step in range(4):
        norms = []
        for m, optimizer in ((model, fused), (other, expected)):
            set_gradients(m, step)
            norms.append(clip_and_step(optimizer, 1.0).item())
        assert abs(norms[0] / norms[1] - 1) <= 1e-6
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
            states = fused.state[p], expected.state[q]
            assert states[0].keys() == states[1].keys()
            if step == 2:
                fused.state[p] = {name: x.clone() for name, x in states[1].items()}
    assert bias_corrected(fused) == bias_corrected(expected) == (kind == "adamw")


WITH_GRADIENT = {  # the updates in which a parameter has a gradient
    "embedding.weight": {0, 1, 2, 3, 4, 5},
    "linear.weight": {3, 4, 5},
    "linear.bias": {0, 2, 5},
    "norm.weight": {1},
    "norm.bias": set(),
    "head.bias": {0, 1, 4},
}


def set_some_gradients(model, step):
    set_gradients(model, step)
    for name, p in model.named_parameters():
        if step not in WITH_GRADIENT[name]:
            p.grad = None


@pytest.mark.parametrize("resumed", [False, True], ids=["whole", "resumed"])
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("reference", torch.float64, 1e-12), ("reference", torch.float32, 1e-5), ("cuda", torch.float32, 1e-5)],
)
def test_each_parameter_is_corrected_by_its_own_number_of_updates(backend, dtype, tolerance, resumed):
    """Late, missing and intermittent gradients, against torch's AdamW in float64."""
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}
    model, other = make().to(dtype), make()
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    expected = torch.optim.AdamW(decay_groups(other, 0.1), **options)

    def fresh():
        return FusedAdam(decay_groups(model, 0.1), **options, bias_correction=True, backend=backend)

    optimizer = fresh()
    for step in range(6):
        if resumed and step == 3:
            state = optimizer.state_dict()
            optimizer = fresh()
            optimizer.load_state_dict(state)
        for m, o in ((model, optimizer), (other, expected)):
            set_some_gradients(m, step)
            o.step()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=tolerance, atol=tolerance * 1e-2)
        assert torch.equal(q, before[name]) == (not WITH_GRADIENT[name])
        assert (p in optimizer.state) == bool(WITH_GRADIENT[name])
        if WITH_GRADIENT[name]:
            assert optimizer.state[p]["step"].item() == len(WITH_GRADIENT[name])


def test_each_group_has_its_own_rate_and_decay():
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}
    updated = []
    for build in (
        lambda groups: FusedAdam(groups, **options, bias_correction=True, backend="reference"),
        lambda groups: torch.optim.AdamW(groups, **options),
    ):
        model = make()
        matrices, others = decay_groups(model, 0.1)
        optimizer = build([matrices | {"lr": 3e-2}, others | {"weight_decay": 0.3}])
        for step in range(3):
            set_gradients(model, step)
            optimizer.step()
        updated.append(list(model.parameters()))
    for p, q in zip(*updated, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_fused_adam_needs_a_gradient():
    with pytest.raises(ValueError, match="none of them has a gradient"):
        FusedAdam(make().parameters(), lr=1.0, betas=(0.9, 0.99), eps=1e-6, bias_correction=True).step()
