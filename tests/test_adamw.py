"""adamw: AdamW over many tensors with clipping, in every backend and dtype that its SPEC names."""

from __future__ import annotations

import pytest
import torch
from checks import cases, long_cases
from torch import Tensor

import fastlm

OP = "adamw"
SHAPES = [(3,), (1,), (100, 77), (8192,), (9000, 5), (0,), (65,), (2, 3, 4)]
HYPER = {"betas": (0.9, 0.99), "eps": 1e-6}
NORM_ERROR = 60960**0.5 * 2**-24  # the rounding error of a float32 sum of all 60960 elements, a random walk


def tensors(dtype: torch.dtype, device: str, shapes=SHAPES) -> tuple[list[Tensor], ...]:
    generator = torch.Generator().manual_seed(1)
    parameters, gradients = ([torch.randn(s, generator=generator).to(dtype).to(device) for s in shapes] for _ in "pg")
    wide = torch.promote_types(dtype, torch.float32)
    first = [0.1 * torch.randn(s, generator=generator).to(device, wide) for s in shapes]
    second = [torch.rand(s, generator=generator).to(device, wide) for s in shapes]
    return parameters, gradients, first, second


def in_float64(lists: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    return tuple([x.double() for x in xs] for xs in lists)


def device_values(parameters: list[Tensor], **others: float | list) -> dict[str, Tensor]:
    """Returns rates, decays and `others` as tensors, the form in which adamw takes them."""
    wide = torch.float64 if parameters[0].dtype == torch.float64 else torch.float32
    rates = [1e-2 * (1 + i % 2) for i in range(len(parameters))]
    decays = [0.1 * (i % 3) for i in range(len(parameters))]
    given = {"rates": rates, "decays": decays, **others}
    return {name: torch.tensor(x, dtype=wide, device=parameters[0].device) for name, x in given.items()}


def update(lists: tuple[list[Tensor], ...], backend: str = "auto", **others: float | list) -> Tensor:
    """Calls adamw with `device_values`."""
    return fastlm.adamw(*lists, **device_values(lists[0], **others), **HYPER, backend=backend)


@pytest.mark.parametrize("case", cases(OP))
@pytest.mark.parametrize("max_norm", [3.0, 1e9], ids=["clipped", "unclipped"])
@pytest.mark.parametrize("corrected", [False, True], ids=["uncorrected", "corrected"])
def test_accuracy(case, max_norm, corrected):
    """Errors against float64 are at most twice those of the float32 reference, plus one rounding to the dtype."""
    options = {"max_norm": max_norm, "scale": 0.5}
    if corrected:
        options["corrections"] = [(0.3 / i, 0.2 / i) for i in range(1, len(SHAPES) + 1)]
    actual = tensors(case.dtype, case.device)
    exact, yardstick = in_float64(actual), tuple([x.float() for x in xs] for xs in actual)
    norm = update(actual, case.backend, **options)
    exact_norm = update(exact, "reference", **options)
    update(yardstick, "reference", **options)
    assert norm.shape == ()
    assert abs(norm.item() / exact_norm.item() - 1) <= NORM_ERROR
    for name, got, right, near in zip("pgmv", actual, exact, yardstick, strict=True):
        for a, b, c in zip(got, right, near, strict=True):
            if a.numel():
                rounding = torch.finfo(a.dtype).eps * b.abs().max()
                bound = 2 * (c.double() - b).abs().max() + rounding
                assert (a.double() - b).abs().max() <= bound, name


@pytest.mark.parametrize("case", cases(OP))
def test_repeats(case):
    first, second = tensors(case.dtype, case.device), tensors(case.dtype, case.device)
    assert torch.equal(update(first, case.backend, max_norm=1.0), update(second, case.backend, max_norm=1.0))
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("case", cases(OP))
def test_dtypes_may_differ_and_tensors_lie_anywhere(case):
    """A half-precision matrix together with a float32 bias that is not aligned to 16 bytes."""
    buffer = torch.randn(40, device=case.device)
    parameters = [torch.randn(5, 8, device=case.device).to(case.dtype), buffer[3:20]]
    gradients = [torch.randn_like(p) for p in parameters]
    moments = [[torch.zeros_like(p, dtype=torch.float32) for p in parameters] for _ in range(2)]
    exact = in_float64((parameters, gradients, *moments))
    outside = buffer[[0, 1, 2, 20, 21]].clone()
    update((parameters, gradients, *moments), case.backend)
    update(exact, "reference")
    assert torch.equal(buffer[[0, 1, 2, 20, 21]], outside)
    for a, b in zip(parameters, exact[0], strict=True):
        assert (a.double() - b).abs().max() <= 2 * torch.finfo(a.dtype).eps * b.abs().max()


@pytest.mark.parametrize("case", long_cases(OP))
def test_more_tensors_than_a_launch_takes(case):
    shapes = [(2,)] * 487
    actual = tensors(case.dtype, case.device, shapes)
    exact = in_float64(actual)
    norm = update(actual, case.backend, max_norm=1.0)
    assert abs(norm.item() / update(exact, "reference", max_norm=1.0).item() - 1) <= NORM_ERROR
    for a, b in zip(actual[0], exact[0], strict=True):
        assert (a.double() - b).abs().max() <= 2 * torch.finfo(a.dtype).eps * b.abs().max()


@pytest.mark.parametrize("case", cases(OP))
def test_parameters_may_require_gradients(case):
    plain, leaves = tensors(case.dtype, case.device), tensors(case.dtype, case.device)
    leaves = ([torch.nn.Parameter(p) for p in leaves[0]], *leaves[1:])
    norm = update(leaves, case.backend, max_norm=1.0)
    assert torch.equal(norm, update(plain, case.backend, max_norm=1.0)) and not norm.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(leaves[0], plain[0], strict=True))


def test_shapes_come_out_of_meta_tensors():
    lists = tuple([torch.empty(s, device="meta") for s in SHAPES] for _ in range(4))
    norm = update(lists, max_norm=1.0, corrections=[(0.3, 0.2)] * len(SHAPES))
    assert norm.is_meta and norm.shape == () and norm.dtype == torch.float32


def test_is_torchs_adamw():
    parameters, gradients, *_ = in_float64(tensors(torch.float32, "cpu"))
    moments = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    leaves = [torch.nn.Parameter(p.clone()) for p in parameters]
    optimizer = torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.1, **HYPER)
    for step in range(1, 4):
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(leaves, 2.0)
        optimizer.step()
        corrections = [tuple(1 - beta**step for beta in HYPER["betas"])] * len(leaves)
        equal = {"rates": [1e-2] * len(leaves), "decays": [0.1] * len(leaves)}
        update((parameters, gradients, *moments), **equal, corrections=corrections, max_norm=2.0)
    for p, leaf in zip(parameters, leaves, strict=True):
        torch.testing.assert_close(p, leaf.detach(), rtol=1e-6, atol=1e-8)  # torch adds 1e-6 to the norm it divides by


@pytest.mark.parametrize("case", cases(OP))
def test_sharded_ranks_make_the_same_update_as_one(case):
    """Two ranks, each with half of the parameters, clip by the norm of all: their squares are summed in between."""
    whole, halves = tensors(case.dtype, case.device), tensors(case.dtype, case.device)
    options = {"corrections": [(0.3, 0.2)] * len(SHAPES), "max_norm": 3.0, "scale": 0.5}
    norm = update(whole, case.backend, **options)
    ranks = [tuple(xs[rank::2] for xs in halves) for rank in range(2)]
    squares = sum(fastlm.gradient_squares(rank[1], backend=case.backend).sum() for rank in ranks)
    for start, rank in enumerate(ranks):
        given = device_values(halves[0], **options)
        given |= {name: given[name][start::2].contiguous() for name in ("rates", "decays", "corrections")}
        reduced = fastlm.adamw(*rank, **given, **HYPER, squares=squares.view(1), backend=case.backend)
        assert abs(reduced.item() / norm.item() - 1) <= NORM_ERROR
    for xs, ys in zip(whole, halves, strict=True):
        for x, y in zip(xs, ys, strict=True):
            torch.testing.assert_close(x, y, rtol=2 * torch.finfo(x.dtype).eps, atol=1e-6)


@pytest.mark.parametrize("case", cases(OP))
def test_optional_values_default_to_no_effect(case):
    first, second = tensors(case.dtype, case.device), tensors(case.dtype, case.device)
    neutral = {"scale": 1.0, "max_norm": float("inf"), "corrections": [(1.0, 1.0)] * len(SHAPES)}
    norm = update(first, case.backend)
    assert torch.equal(norm, update(second, case.backend, **neutral))
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("case", cases(OP))
def test_the_sum_of_the_squares_is_the_squared_norm(case):
    gradients = tensors(case.dtype, case.device)[1]
    squares = fastlm.gradient_squares(gradients, backend=case.backend)
    exact = sum(g.double().square().sum().item() for g in gradients)
    assert squares.ndim == 1 and squares.dtype == torch.float32
    assert abs(squares.double().sum().item() / exact - 1) <= NORM_ERROR


@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda", "triton"])
def test_the_default_backend_serves_it(backend):
    if torch.cuda.is_available():
        pytest.skip("kernels run on CPU tensors where there is no GPU")
    first, second = tensors(torch.float32, "cpu"), tensors(torch.float32, "cpu")
    with fastlm.use_backend(backend):
        update(first, max_norm=1.0)
    update(second, backend, max_norm=1.0)
    assert all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["reference", "cuda", "triton"])
def test_a_captured_update_is_replayed_with_other_values(backend):
    """Each replay of a CUDA graph reads the current rates, decays, corrections, max_norm and scale."""
    first = {"max_norm": 3.0, "scale": 0.5, "corrections": [(0.3, 0.2)] * len(SHAPES)}
    second = {"max_norm": 1.0, "scale": 2.0, "corrections": [(0.5, 0.4)] * len(SHAPES), "rates": [3e-2] * len(SHAPES)}
    captured, expected = tensors(torch.float32, "cuda"), tensors(torch.float32, "cuda")
    given = device_values(captured[0], **first)
    warm_up = tensors(torch.float32, "cuda")
    fastlm.adamw(*warm_up, **given, **HYPER, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm = fastlm.adamw(*captured, **given, **HYPER, backend=backend)
    for step in (first, second):
        for name, x in device_values(captured[0], **step).items():
            given[name].copy_(x)
        graph.replay()
        assert torch.equal(norm, update(expected, backend, **step))
        assert all(
            torch.equal(a, b) for x, y in zip(captured, expected, strict=True) for a, b in zip(x, y, strict=True)
        )


P = [torch.zeros(3), torch.zeros(2, 2)]


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"parameters": []}, ValueError, "at least one parameter"),
        ({"gradients": P[:1]}, ValueError, "gradients must have an entry per parameter, 2, got 1"),
        ({"gradients": [P[0].half(), P[1]]}, TypeError, r"gradients\[0\] must be float32, got float16"),
        (
            {"first_moments": [P[0], P[1][0]]},
            ValueError,
            r"first_moments\[1\] must have its parameter's shape \(2, 2\)",
        ),
        ({"second_moments": [P[0], P[1].t()[:, :1].expand(2, 2)]}, ValueError, r"second_moments\[1\] must be contig"),
        ({"max_norm": torch.tensor(0.0)}, ValueError, "max_norm must be above 0, got 0"),
        ({"max_norm": 1.0}, TypeError, "max_norm must be a tensor, got float"),
        ({"scale": torch.ones(1)}, ValueError, r"scale must have shape \(\), got \(1,\)"),
        ({"rates": torch.ones(3)}, ValueError, r"rates must have shape \(2,\), got \(3,\)"),
        ({"decays": torch.ones(2).double()}, TypeError, "decays must be float32, got float64"),
        ({"squares": torch.ones(2, 2)}, ValueError, r"squares must have shape \(4,\), got \(2, 2\)"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas in \[0, 1\)"),
        ({"corrections": torch.ones(1, 2)}, ValueError, r"corrections must have shape \(2, 2\), got \(1, 2\)"),
        ({"corrections": torch.zeros(2, 2)}, ValueError, r"corrections must lie in \(0, 1\]"),
        ({"backend": "tpu"}, ValueError, "backend must be one of auto, .*got 'tpu'"),
    ],
)
def test_bad_arguments(arguments, error, sentence):
    lists = {name: P for name in ("parameters", "gradients", "first_moments", "second_moments")}
    good = lists | device_values(P) | HYPER
    with pytest.raises(error, match=sentence):
        fastlm.adamw(**(good | arguments))


def test_only_the_reference_takes_float64():
    with pytest.raises(RuntimeError, match="adamw: backend 'triton' cannot serve this call: it takes .* not float64"):
        update(in_float64(tensors(torch.float32, "cpu")), "triton")


def test_gradients_are_needed():
    with pytest.raises(ValueError, match="at least one gradient"):
        fastlm.gradient_squares([])
