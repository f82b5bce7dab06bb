"""Adam with decoupled weight decay, bias-corrected or not, parameter groups, and clipping by the global norm."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fastlm import backends, ops

Parts = Iterable[tuple[Iterable[Tensor], float]]


def parameter_groups(parts: Parts, weight_decay: float) -> list[dict]:
    """Builds an optimizer's parameter groups from (parameters, rate multiplier) pairs.

    Each pair becomes two groups: matrices (embeddings included) with `weight_decay`, biases and layer norms without.
    Parameters that require no gradient and empty groups are left out. A group's "rate" is the multiplier for
    `set_rate`.
    """
    groups = []
    for parameters, rate in parts:
        trained = [p for p in parameters if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups.append({"params": matrices, "weight_decay": weight_decay, "rate": rate})
        groups.append({"params": vectors, "weight_decay": 0.0, "rate": rate})
    return [group for group in groups if group["params"]]


def build_optimizer(
    parts: Parts,
    *,
    bias_correction: bool,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    backend: str = "auto",
) -> torch.optim.Optimizer:
    """Builds the optimizer of a run: FusedAdam if a kernel runs it, else torch's AdamW or UncorrectedAdam.

    Args:
        parts: (parameters, rate multiplier) pairs, as `parameter_groups` takes them; [(model.parameters(), 1.0)] for
            one rate.
        bias_correction: whether the moments are corrected for their start at zero (Kingma and Ba 2015). BERT's original
            code does not correct them (Devlin et al. 2019).
        lr, betas, eps, weight_decay: Adam's hyperparameters; weight decay is decoupled.
        backend: "auto", "reference", "cpu", "triton" or "cuda": which backend runs the updates. It is chosen once,
            here.

    Raises:
        ValueError: no parameter requires a gradient.
        RuntimeError: the requested backend cannot take the parameters.
    """
    groups, options = parameter_groups(parts, weight_decay), {"lr": lr, "betas": betas, "eps": eps}
    if not groups:
        raise ValueError("parts: at least one parameter that requires a gradient expected, got none")
    parameters = [p for group in groups for p in group["params"]]
    chosen = backends.choose(ops.SPECS["adamw"], backend, backends.call_of(parameters[0], dtype=_widest(parameters)))
    if chosen in ("triton", "cuda"):
        optimizer = FusedAdam(groups, **options, bias_correction=bias_correction, backend=chosen)
    elif bias_correction:
        optimizer = torch.optim.AdamW(groups, **options, fused=True)
    else:
        optimizer = UncorrectedAdam(groups, **options)
    set_rate(optimizer, lr)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of each group to `rate` times the group's multiplier (1 if it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clips the gradients to max_norm and makes one update; returns the norm before clipping, as clip_global_norm."""
    if isinstance(optimizer, FusedAdam):
        return optimizer.step(max_norm=max_norm)
    norm = clip_global_norm((p for group in optimizer.param_groups for p in group["params"]), max_norm)
    optimizer.step()
    return norm


@torch.no_grad()
def clip_global_norm(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales the gradients in place by max_norm / max(norm, max_norm); returns their global 2-norm before clipping.

    The norm is a 0-dim tensor (fp32; fp64 for fp64) on the gradients' device, without a host synchronisation. The
    caller has to check that it is finite; if not, the gradients are useless. An infinite max_norm changes no gradient.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise ValueError("params: none of them has a gradient; call backward() before clipping")
    dtype = torch.promote_types(grads[0].dtype, torch.float32)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=dtype)))
    if max_norm < math.inf:
        torch._foreach_mul_(grads, max_norm / norm.clamp(min=max_norm))
    return norm


class UncorrectedAdam(torch.optim.Optimizer):
    """Implements Adam without bias correction, with decoupled weight decay, as in BERT's code (Devlin et al. 2019).

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  p -= lr (m / (sqrt(v) + eps) + weight_decay p).
    Parameters, gradients and state share one dtype; all tensors of a group are on one device.

    It is torch's fused AdamW at step 10^9, where both corrections, 1 - beta^step, are exactly 1.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        torch._fused_adamw_(
            params,
            [_strided_like(p.grad, p) for p in params],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [torch.tensor(1e9, device=params[0].device)] * len(params),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _strided_like(x: Tensor, other: Tensor) -> Tensor:
    """Returns x with the strides of `other`: the fused update goes through memory without looking at strides."""
    return x if x.stride() == other.stride() else torch.empty_like(other).copy_(x)


class FusedAdam(torch.optim.Optimizer):
    """Implements Adam by `fastlm.adamw`: clipping and all updates in two launches, without a host synchronisation.

    With `bias_correction` the state is that of torch.optim.AdamW, else that of UncorrectedAdam, so checkpoints can be
    exchanged. Each parameter has its own step, rate and decay; betas and eps are shared.

    `step` calls `prepare`, which runs on the host, and `update`, which a CUDA graph can capture. Call `prepare` before
    each replay, with gradients on the same parameters: the replay then reads the scalars of its step.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool,
        backend: str = "auto",
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.bias_correction, self.backend = bias_correction, backend
        self._prepared: list[tuple[Tensor, dict]] = []  # the parameters of the prepared update and their groups
        self._scalars: Tensor | None = None  # rates (n,), decays (n,), corrections (n, 2) if any, max_norm

    def __getstate__(self) -> dict:
        """Returns the state of a copy: all but a prepared update."""
        own = {"bias_correction": self.bias_correction, "backend": self.backend, "_prepared": [], "_scalars": None}
        return super().__getstate__() | own

    def step(self, closure=None, *, max_norm: float = math.inf) -> Tensor:
        """Updates the parameters that have gradients; returns the gradients' norm before clipping to max_norm."""
        if closure is not None:
            raise ValueError("closure: none expected: FusedAdam.step returns the gradients' norm")
        self.prepare(max_norm=max_norm)
        return self.update()

    def prepare(self, *, max_norm: float = math.inf) -> None:
        """Advances the step of each parameter that has a gradient, and writes the scalars of the update to the device.

        The scalars are the rates, decays and corrections of all parameters, and max_norm. They are one asynchronous
        copy from pinned memory, always to the same device memory.
        """
        if not max_norm > 0:
            raise ValueError(f"max_norm: a number above 0 expected, got {max_norm}")
        self._prepared = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not self._prepared:
            raise ValueError("params: none of them has a gradient; call backward() before a step")
        rates = [group["lr"] for _, group in self._prepared]
        decays = [group["weight_decay"] for _, group in self._prepared]
        device = self._prepared[0][0].device
        dtype = torch.promote_types(_widest([p for p, _ in self._prepared]), torch.float32)
        scalars = torch.tensor(
            [*rates, *decays, *self._corrections(), max_norm], dtype=dtype, pin_memory=device.type == "cuda"
        )
        if self._scalars is None or self._scalars.shape != scalars.shape or self._scalars.device != device:
            self._scalars = torch.empty_like(scalars, device=device)
        self._scalars.copy_(scalars, non_blocking=True)

    def update(self) -> Tensor:
        """Makes the prepared update; returns the gradients' norm before clipping, on the device."""
        parameters = [p for p, _ in self._prepared]
        states = [self.state[p] for p in parameters]
        n = len(parameters)
        rates, decays, corrections, max_norm = self._scalars.split([n, n, 2 * n * self.bias_correction, 1])
        betas, eps = self._shared("betas"), self._shared("eps")
        return ops.adamw(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            rates=rates,
            decays=decays,
            betas=betas,
            eps=eps,
            corrections=corrections.view(n, 2) if self.bias_correction else None,
            max_norm=max_norm.view(()),
            backend=self.backend,
        )

    def _corrections(self) -> list[float]:
        """Advances the steps; returns 1 - beta1^step and 1 - beta2^step per parameter, if biases are corrected."""
        states = [self._state_of(p) for p, _ in self._prepared]
        if not self.bias_correction:
            return []
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        betas = self._shared("betas")
        return [1 - beta**step for step in torch.stack(steps).tolist() for beta in betas]

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        """Returns the state of a parameter, created at its first gradient. The step stays on the host."""
        state, dtype = self.state[p], torch.promote_types(p.dtype, torch.float32)
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment not in state:
                state[moment] = torch.zeros_like(p, dtype=dtype, memory_format=torch.contiguous_format)
        if self.bias_correction:
            state["step"] = state.get("step", torch.zeros(())).cpu()  # a checkpoint may have put it on the device
        return state

    def _shared(self, name: str):
        """Returns an option that must be the same in all groups, since one launch updates them all."""
        values = [group[name] for group in self.param_groups]
        if any(value != values[0] for value in values):
            raise ValueError(f"{name}: one value for all parameter groups expected, got {values}")
        return values[0]


def _widest(parameters: Iterable[Tensor]) -> torch.dtype:
    """Returns the dtype that holds the values of every parameter."""
    return functools.reduce(torch.promote_types, (p.dtype for p in parameters))
