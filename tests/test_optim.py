"""The optimizers against torch's and against the papers' formulas computed in float64."""

import copy

import pytest
import torch
from torch import nn

import fastlm
from fastlm.train.optim import (
    FusedAdam,
    UncorrectedAdam,
    build_optimizer,
    clip_and_step,
    clip_global_norm,
    parameter_groups,
    set_rate,
)

GPT1 = {"bias_correction": True, "lr": 2.5e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
BERT = {"bias_correction": False, "lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}


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
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)


def groups_of(model, weight_decay):
    return parameter_groups([(model.parameters(), 1.0)], weight_decay)


def test_decay_is_on_every_matrix_and_nothing_else():
    model = make()
    decayed, other = groups_of(model, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"embedding.weight", "linear.weight"}
    assert {names[id(p)] for p in other["params"]} == {"linear.bias", "norm.weight", "norm.bias", "head.bias"}
    assert (decayed["weight_decay"], other["weight_decay"]) == (0.01, 0.0)


def by_formula(model, *, bias_correction, lr, betas, eps, weight_decay, steps):
    """Computes both papers' Adam, one element at a time, in Python floats."""
    weights = {}
    for name, p in model.named_parameters():
        decay = weight_decay if p.ndim == 2 else 0.0
        for i, w in enumerate(p.detach().flatten().tolist()):
            weights[name, i] = [w, 0.0, 0.0, decay]
    for step in range(steps):
        set_gradients(model, step)
        correction = (1 - betas[0] ** (step + 1), 1 - betas[1] ** (step + 1)) if bias_correction else (1.0, 1.0)
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
    optimizer = build_optimizer([(model.parameters(), 1.0)], **recipe)
    for step in range(5):
        set_gradients(model, step)
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-14)


def test_uncorrected_adam_is_not_bias_corrected():
    # After one step m = (1 - beta1) g and v = (1 - beta2) g^2: the step is 0.1 / sqrt(0.001) = 3.16 times the rate.
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, -2.0, 5.0])
    UncorrectedAdam([weight], lr=1e-4, weight_decay=0.0).step()
    torch.testing.assert_close(
        weight.detach(), torch.tensor([-1.0, 1.0, -1.0]) * 1e-4 * 0.1 / 0.001**0.5, rtol=1e-4, atol=0
    )


def test_uncorrected_adam_skips_parameters_without_gradient_and_takes_a_closure():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = UncorrectedAdam([used, unused], lr=0.1)

    def closure():
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (used < 1).all() and (unused == 1).all() and unused not in optimizer.state


@pytest.mark.parametrize("layout", ["contiguous", "strided", "strided, with contiguous gradients"])
def test_uncorrected_adam_is_its_formula_in_any_layout(layout):
    """torch's fused kernel goes through memory, whatever the strides; it is held to the formula in float64."""
    torch.manual_seed(0)
    start = torch.randn(30, 211) if layout == "contiguous" else torch.randn(211, 30).t()
    weight = nn.Parameter(start.clone(memory_format=torch.preserve_format))
    optimizer = UncorrectedAdam([weight], lr=1e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)
    p = start.double()
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for _ in range(3):
        g = torch.randn(30, 211)
        weight.grad = g if layout.endswith("gradients") else torch.empty_like(weight).copy_(g)
        optimizer.step()
        m.lerp_(g.double(), 1 - 0.9)
        v.mul_(0.99).addcmul_(g.double(), g.double(), value=1 - 0.99)
        p.mul_(1 - 1e-2 * 0.1).addcdiv_(m, v.sqrt().add_(1e-6), value=-1e-2)
    assert (weight - p).abs().max() <= 8 * torch.finfo(torch.float32).eps * p.abs().max()


def test_an_optimizer_needs_something_to_train():
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient"):
        build_optimizer([(make().requires_grad_(False).parameters(), 1.0)], **GPT1)


@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
@pytest.mark.parametrize("bias_correction", [True, False])
def test_each_part_has_a_rate_of_its_own(backend, bias_correction):
    """A head at the run's rate and a body at a tenth of it learn as with two optimizers; one parameter is frozen."""
    recipe = {**GPT1, "bias_correction": bias_correction}
    model, other = make().float(), make().float()
    for m in (model, other):
        m.norm.weight.requires_grad_(False)
    head = [[m.head.bias, m.linear.weight] for m in (model, other)]
    body = [[m.embedding.weight, m.linear.bias, m.norm.weight, m.norm.bias] for m in (model, other)]
    optimizer = build_optimizer([(body[0], 0.1), (head[0], 1.0)], **recipe, backend=backend)
    others = [build_optimizer([(part, 1.0)], **recipe) for part in (body[1], head[1])]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1 * recipe["lr"]] * 2 + [recipe["lr"]] * 2
    for step, rate in enumerate((1e-2, 3e-3)):
        set_rate(optimizer, rate)
        set_rate(others[0], 0.1 * rate), set_rate(others[1], rate)
        for m, optimizers in ((model, [optimizer]), (other, others)):
            set_gradients(m, step)
            m.norm.weight.grad = None
            for o in optimizers:
                o.step()
    assert torch.equal(model.norm.weight, make().float().norm.weight)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


def test_parts_without_parameters_make_no_group():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = parameter_groups([([matrix], 1.0), ([], 0.5), ([vector], 0.1)], 0.01)
    assert groups == [
        {"params": [matrix], "weight_decay": 0.01, "rate": 1.0},
        {"params": [vector], "weight_decay": 0.0, "rate": 0.1},
    ]


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("auto", torch.optim.AdamW),
        ("reference", torch.optim.AdamW),
        ("cpu", torch.optim.AdamW),
        ("triton", FusedAdam),
        ("cuda", FusedAdam),
    ],
)
@pytest.mark.parametrize("by_default", [False, True])
def test_the_optimizer_obeys_the_backend(backend, expected, by_default):
    """Both a named backend and the global default are obeyed."""
    parts = [(make().float().parameters(), 1.0)]
    if by_default:
        with fastlm.use_backend(backend):
            optimizer = build_optimizer(parts, **GPT1)
    else:
        optimizer = build_optimizer(parts, **GPT1, backend=backend)
    assert type(optimizer) is expected
    if expected is FusedAdam:
        assert optimizer.backend == backend


def test_a_backend_that_cannot_serve_the_parameters_is_refused():
    with pytest.raises(RuntimeError, match="adamw: backend 'cuda' cannot serve this call: .*not float64"):
        build_optimizer([(make().parameters(), 1.0)], **GPT1, backend="cuda")


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


@pytest.mark.parametrize("recipe", [GPT1, BERT], ids=["gpt1", "bert"])
@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
def test_an_infinite_max_norm_clips_nothing(recipe, backend):
    """The update is that of the optimizer without clipping, and the norm is returned."""

    def build(model):
        return build_optimizer([(model.parameters(), 1.0)], **recipe, backend=backend)

    ours, other = make().float(), make().float()
    set_gradients(ours, 1), set_gradients(other, 1)
    norm = clip_and_step(build(ours), float("inf"))
    build(other).step()
    gradients = torch.cat([p.grad.flatten() for p in other.parameters()])
    assert norm.item() == pytest.approx(gradients.norm().item(), rel=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("max_norm", [1.0, float("inf")])
@pytest.mark.parametrize("backend", [None, "reference", "triton", "cuda"])
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


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
def test_fused_adam_makes_the_same_updates_and_the_same_state(bias_correction, backend):
    """Compares three clipped updates with torch's AdamW or UncorrectedAdam, and a fourth one from their state."""
    options = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
    model, other = make().float(), make().float()
    fused = FusedAdam(groups_of(model, 0.01), **options, bias_correction=bias_correction, backend=backend)
    options |= {"bias_correction": bias_correction, "weight_decay": 0.01, "backend": "reference"}
    expected = build_optimizer([(other.parameters(), 1.0)], **options)
    assert type(expected) is (torch.optim.AdamW if bias_correction else UncorrectedAdam)
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
    assert ("step" in states[0]) == ("step" in states[1]) == bias_correction


WITH_GRADIENT = {  # by parameter: the updates in which it has a gradient
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
    [("reference", torch.float64, 1e-12), ("triton", torch.float32, 1e-5), ("cuda", torch.float32, 1e-5)],
)
def test_each_parameter_is_corrected_by_its_own_number_of_updates(backend, dtype, tolerance, resumed):
    """Gradients come late, never and at times; compares with torch's AdamW in float64."""
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}
    model, other = make().to(dtype), make()
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    expected = torch.optim.AdamW(groups_of(other, 0.1), **options)

    def fresh():
        return FusedAdam(groups_of(model, 0.1), **options, bias_correction=True, backend=backend)

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
        matrices, others = groups_of(model, 0.1)
        optimizer = build([matrices | {"lr": 3e-2}, others | {"weight_decay": 0.3}])
        for step in range(3):
            set_gradients(model, step)
            optimizer.step()
        updated.append(list(model.parameters()))
    for p, q in zip(*updated, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
def test_an_update_reads_its_numbers_where_it_read_those_before(backend):
    """`prepare` writes the scalars of each step to the same memory, as a captured CUDA graph needs it."""
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "bias_correction": True, "backend": backend}
    model, other = make().float(), make().float()
    whole, parts = (FusedAdam(groups_of(m, 0.1), **options) for m in (model, other))
    places = set()
    for step, rate in enumerate((1e-2, 2e-2, 5e-3)):
        for m, optimizer in ((model, whole), (other, parts)):
            set_gradients(m, step)
            set_rate(optimizer, rate)
        norm = whole.step(max_norm=1.0 / (1 + step))
        parts.prepare(max_norm=1.0 / (1 + step))
        places.add(parts._scalars.data_ptr())
        assert torch.equal(parts.update(), norm)
    assert len(places) == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "triton", "cuda"])
def test_a_captured_step_is_replayed_with_new_rates(backend):
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "bias_correction": True, "backend": backend}
    model, other = make().float().cuda(), make().float().cuda()
    eager, captured = (FusedAdam(groups_of(m, 0.1), **options) for m in (model, other))
    gradients = [torch.zeros_like(p) for p in other.parameters()]
    for p, g in zip(other.parameters(), gradients, strict=True):
        p.grad = g
    graph = None
    for step, rate in enumerate((1e-2, 2e-2, 5e-3)):
        set_gradients(model, step)
        for g, p in zip(gradients, model.parameters(), strict=True):
            g.copy_(p.grad)
        set_rate(eager, rate), set_rate(captured, rate)
        torch.cuda.set_sync_debug_mode("error")
        norm = eager.step(max_norm=1.0)
        captured.prepare(max_norm=1.0)
        if step == 0:
            captured.update()  # compiles
        elif step == 1:
            graph = torch.cuda.CUDAGraph()
            torch.cuda.set_sync_debug_mode("default")
            with torch.cuda.graph(graph):
                captured_norm = captured.update()
        if graph is not None:
            graph.replay()
        torch.cuda.set_sync_debug_mode("default")
        assert graph is None or torch.equal(norm, captured_norm)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_copied_optimizer_goes_on():
    options = {"lr": 1e-2, "bias_correction": True, "backend": "reference"}
    model = make()
    optimizer = FusedAdam(groups_of(model, 0.1), **options)
    set_gradients(model, 0)
    optimizer.step()
    model_copy, copied = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (model_copy, copied)):
        set_gradients(m, 1)
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), model_copy.parameters(), strict=True))


def test_betas_and_eps_are_the_same_in_all_groups():
    model = make().float()
    matrices, vectors = groups_of(model, 0.1)
    optimizer = FusedAdam([matrices, vectors | {"eps": 1e-3}], lr=1e-2, eps=1e-8, bias_correction=True)
    set_gradients(model, 1)
    with pytest.raises(ValueError, match=r"eps: one value for all parameter groups expected, got \[1e-08, 0.001\]"):
        optimizer.step()


@pytest.mark.parametrize("max_norm", [0.0, float("nan")])
def test_fused_adam_clips_to_a_number_above_0(max_norm):
    model = make().float()
    set_gradients(model, 1)
    optimizer = FusedAdam(model.parameters(), lr=1e-2, bias_correction=True)
    with pytest.raises(ValueError, match=f"max_norm: a number above 0 expected, got {max_norm}"):
        optimizer.step(max_norm=max_norm)


def test_fused_adam_needs_a_gradient():
    with pytest.raises(ValueError, match="none of them has a gradient"):
        FusedAdam(make().parameters(), lr=1.0, betas=(0.9, 0.99), eps=1e-6, bias_correction=True).step()
