"""The papers' optimizers: Adam as GPT-1 and as BERT use it, and clipping by the global norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


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
    """kind: "adamw" (GPT-1: bias-corrected, decoupled decay) or "bert" (BertAdam)."""
    groups = decay_groups(model, weight_decay)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    if kind == "bert":
        return BertAdam(groups, lr=lr, betas=betas, eps=eps)
    raise ValueError(f'optimizer: "adamw" or "bert" expected, not {kind!r}')


@torch.no_grad()
def clip_global_norm(params: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales the gradients in place by max_norm / max(norm, max_norm) and returns their global 2-norm before that.

    The norm is a 0-dim tensor (fp32; fp64 for fp64) on the gradients' device: nothing waits for it here. If it is not
    finite, the gradients are not either: whoever reads the norm has to look.
    """
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        raise ValueError("params: none of them has a gradient; call backward() before clipping")
    wide = torch.promote_types(grads[0].dtype, torch.float32)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=wide)))
    torch._foreach_mul_(grads, max_norm / norm.clamp(min=max_norm))
    return norm
