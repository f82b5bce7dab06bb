"""The papers' optimizers: Adam as GPT-1 and as BERT use it, and clipping by the global norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastlm import backends, ops


class BertAdam(torch.optim.Optimizer):
    """Adam as BERT's original code has it: no bias correction, decoupled weight decay.

    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  p -= lr (m / (sqrt(v) + eps) + weight_decay p).
    Parameters, gradients and state in one dtype; all tensors of a group on one device.
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
        grads = [p.grad for p in params]
        m = [self.state[p]["exp_avg"] for p in params]
        v = [self.state[p]["exp_avg_sq"] for p in params]
        lr, (beta1, beta2) = group["lr"], group["betas"]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        denominators = torch._foreach_sqrt(v)
        torch._foreach_add_(denominators, group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, m, denominators, -lr)


class FusedAdam(torch.optim.Optimizer):
    """Either paper's Adam by `fastlm.adamw`: clipping and all updates in two launches, without a wait for the device.

    Its state is that of torch.optim.AdamW with `bias_correction`, else that of BertAdam: checkpoints fit both.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool,
        backend: str = "auto",
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.betas, self.eps, self.bias_correction, self.backend = betas, eps, bias_correction, backend

    @torch.no_grad()
    def step(self, closure=None, *, max_norm: float = float("inf")) -> Tensor:
        """One update of the parameters that have gradients; returns the norm of those, before clipping to max_norm."""
        if closure is not None:
            raise ValueError("closure: none expected: FusedAdam.step returns the gradients' norm")
        given = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not given:
            raise ValueError("params: none of them has a gradient; call backward() before a step")
        states = [self._advanced(p) for p, _ in given]
        return ops.adamw(
            [p.detach() for p, _ in given],
            [p.grad for p, _ in given],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            rates=[group["lr"] for _, group in given],
            decays=[group["weight_decay"] for _, group in given],
            betas=self.betas,
            eps=self.eps,
            corrections=[self._corrections(state) for state in states],
            max_norm=max_norm,
            backend=self.backend,
        )

    def _advanced(self, p: Tensor) -> dict[str, Tensor]:
        state, wide = self.state[p], torch.promote_types(p.dtype, torch.float32)
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment not in state:
                state[moment] = torch.zeros_like(p, dtype=wide, memory_format=torch.contiguous_format)
        if self.bias_correction:
            state["step"] = state.get("step", torch.zeros(())).cpu() + 1  # moved to the host once, after a resume
        return state

    def _corrections(self, state: dict[str, Tensor]) -> tuple[float, float]:
        """The divisors of a parameter's moments after its own number of updates; (1, 1) without bias correction."""
        if not self.bias_correction:
            return (1.0, 1.0)
        step = int(state["step"])
        return tuple(1 - beta**step for beta in self.betas)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: decay on every matrix, embeddings included; none on biases and layer norms (both papers)."""
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, *, kind: str, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """kind: "adamw" (GPT-1: bias-corrected, decoupled decay) or "bert" (no bias correction).

    FusedAdam where a kernel serves it, else torch's AdamW or BertAdam.
    """
    if kind not in ("adamw", "bert"):
        raise ValueError(f'optimizer: "adamw" or "bert" expected, not {kind!r}')
    groups, options = decay_groups(model, weight_decay), {"lr": lr, "betas": betas, "eps": eps}
    p = next(model.parameters())
    if backends.resolve("adamw", "auto", p.dtype, p.device.type) != "reference":
        return FusedAdam(groups, **options, bias_correction=kind == "adamw")
    return torch.optim.AdamW(groups, **options, fused=True) if kind == "adamw" else BertAdam(groups, **options)


def bias_corrected(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's state has a step beside the moments."""
    return isinstance(optimizer, torch.optim.AdamW) or getattr(optimizer, "bias_correction", False)


def clip_and_step(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """One update with the gradients clipped to max_norm; returns their norm before that, as clip_global_norm does."""
    if isinstance(optimizer, FusedAdam):
        return optimizer.step(max_norm=max_norm)
    norm = clip_global_norm((p for group in optimizer.param_groups for p in group["params"]), max_norm)
    optimizer.step()
    return norm


@torch.no_grad()
def clip_global_norm(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales the gradients in place by max_norm / max(norm, max_norm) and returns their global 2-norm before that.

    The norm is a 0-dim tensor (fp32; fp64 for fp64) on the gradients' device: nothing waits for it here. If it is not
    finite, the gradients are worthless: whoever reads the norm has to look. An infinite max_norm leaves them as they
    are.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise ValueError("params: none of them has a gradient; call backward() before clipping")
    wide = torch.promote_types(grads[0].dtype, torch.float32)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=wide)))
    if max_norm < float("inf"):
        torch._foreach_mul_(grads, max_norm / norm.clamp(min=max_norm))
    return norm
