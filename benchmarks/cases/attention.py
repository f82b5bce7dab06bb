"""attention and attention_packed: batches without padding, padded and packed, with and without dropout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastlm
from benchmarks.case import Case, Inputs, Peer, Run, Unavailable, apply_mask, package, randn
from benchmarks.grid import Grid
from benchmarks.lengths import lengths
from fastlm.dropout import attention_mask
from fastlm.ops._cost import Cost

DIM = 64
MAX_EXACT_SCORES = 2**26  # scores computed in float64; with autograd's saved tensors they take a few GB


@dataclass(frozen=True)
class Attention(Case):
    op = "attention"
    products = True
    batch: int = 0
    length: int = 0
    heads: int = 12
    causal: bool = False
    form: str = "whole"  # "whole": no padding; "padded": on the right; "packed": sequences concatenated to (T, H, D)

    @property
    def shape(self) -> str:
        kind = "causal" if self.causal else "" if self.form == "whole" else self.form
        dropout = f"p={self.dropout_p:g}" if self.dropout_p else ""
        return " ".join(word for word in (self.label, kind, dropout) if word)

    def parameters(self) -> dict[str, Any]:
        names = ("batch", "length", "heads", "causal", "form", "dropout_p")
        return {name: getattr(self, name) for name in names} | {"head_dim": DIM, "valid_tokens": sum(self.lengths())}

    def lengths(self) -> list[int]:
        return [self.length] * self.batch if self.form == "whole" else lengths(self.batch, self.length)

    def rows(self) -> tuple[int, ...]:
        return (sum(self.lengths()),) if self.form == "packed" else (self.batch, self.length)

    def inputs(self, generator: torch.Generator) -> Inputs:
        t = self.projections(generator) | {"seed": torch.tensor([20262], device=generator.device)}
        each = torch.tensor(self.lengths(), dtype=torch.int32, device=generator.device)
        if self.form == "padded":
            t["lengths"] = each
        if self.form == "packed":
            t["cu_seqlens"] = F.pad(each.cumsum(0, dtype=torch.int32), (1, 0))
        return t

    def projections(self, generator: torch.Generator) -> Inputs:
        return {name: randn(generator, *self.rows(), self.heads, DIM) for name in "qkv"}

    def qkv(self, t: Inputs) -> tuple[Tensor, ...]:
        return t["q"], t["k"], t["v"]

    def with_qkv(self, t: Inputs, *qkv: Tensor) -> Inputs:
        return t | dict(zip("qkv", qkv, strict=True))

    def output_shape(self, t: Inputs) -> tuple[int, ...]:
        return (*self.rows(), self.heads, DIM)

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.attention(*self.qkv(t), **self.options(t), backend=backend)

    def options(self, t: Inputs) -> dict[str, Any]:
        sequences = {name: t[name] for name in ("lengths", "cu_seqlens") if name in t}
        if self.form == "packed":
            sequences["max_seqlen"] = max(self.lengths())
        return {"causal": self.causal, "dropout_p": self.dropout_p, "seed": t["seed"], **sequences}

    # Exact results -------------------------------------------------------------------------------------------------

    def naive(self, t: Inputs, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(t)
        if self.form != "packed":
            return self.zero_padding(t, self._naive_attention(t, q, k, v, lambda p: apply_mask(p, mask, self.keep)))
        outputs, bounds = [], t["cu_seqlens"].tolist()
        for i, (start, end) in enumerate(itertools.pairwise(bounds)):
            rows, own = slice(start, end), None if mask is None else mask[i : i + 1, :, : end - start, : end - start]
            one = (x[None, rows] for x in (q, k, v))
            outputs.append(self._naive_attention(t, *one, lambda p, own=own: apply_mask(p, own, self.keep))[0])
        return torch.cat(outputs)

    def eager(self, t: Inputs) -> Tensor:
        return self._naive_attention(t, *self.qkv(t), lambda p: F.dropout(p, self.dropout_p))

    def _naive_attention(self, t: Inputs, q: Tensor, k: Tensor, v: Tensor, drop: Callable[[Tensor], Tensor]) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(DIM)
        if self.causal:
            above = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(above, -torch.inf)
        if "lengths" in t:
            scores = scores.masked_fill(~self.valid(t)[:, None, None, :], -torch.inf)
        return (drop(scores.softmax(-1)) @ v).transpose(1, 2)

    def valid(self, t: Inputs) -> Tensor:
        """Returns a (B, S) mask of the positions that are not padding."""
        return torch.arange(self.length, device=t["lengths"].device) < t["lengths"][:, None]

    def zero_padding(self, t: Inputs, out: Tensor) -> Tensor:
        return out * self.valid(t)[:, :, None, None].to(out.dtype) if self.form == "padded" else out

    def mask(self, t: Inputs) -> Tensor | None:
        if not self.dropout_p:
            return None
        batch = t["cu_seqlens"].numel() - 1 if self.form == "packed" else self.qkv(t)[0].shape[0]
        longest = max(self.lengths()) if self.form == "packed" else self.length
        return attention_mask(t["seed"], batch, self.heads, longest, longest, self.keep)

    def excerpt(self, t: Inputs) -> Inputs:
        """Returns the first sequences; the others do not affect their results."""
        sequences = min(self.batch, max(1, MAX_EXACT_SCORES // (self.heads * self.length**2)))
        cut = {"lengths": sequences, "cu_seqlens": sequences + 1}
        end = sum(self.lengths()[:sequences]) if self.form == "packed" else sequences
        return {name: x[: cut.get(name, end)] if name != "seed" else x for name, x in t.items()}

    def excerpt_results(self, results: Inputs, part: Inputs) -> Inputs:
        rows = self.qkv(part)[0].shape[0]
        return {name: x[:rows] for name, x in results.items()}

    def probe(self, t: Inputs) -> Inputs:
        """Returns q = k = 0, so that all probabilities are equal, and v = the identity for the first DIM keys: column d
        of o is 0 where key d was dropped."""
        q, k, v = self.qkv(t)
        position, _ = self._positions(t)
        values = F.one_hot(position, max(self.length, DIM))[..., :DIM].to(v.dtype)
        return self.with_qkv(
            t, torch.zeros_like(q), torch.zeros_like(k), values[..., None, :].expand_as(v).contiguous()
        )

    def kept(self, t: Inputs, out: Tensor) -> Tensor:
        position, length = self._positions(t)
        key = torch.arange(DIM, device=out.device)
        seen = (key < length[..., None]) & (position < length)[..., None]
        if self.causal:
            seen = seen & (key <= position[..., None])
        return (out != 0)[seen[..., None, :].expand_as(out)]

    def _positions(self, t: Inputs) -> tuple[Tensor, Tensor]:
        """Returns each row's position in its sequence, and the sequence's length."""
        device = t["seed"].device
        each = torch.tensor(self.lengths(), device=device)
        if self.form != "packed":
            return torch.arange(self.length, device=device).expand(self.batch, -1), each[:, None].expand(self.rows())
        position = torch.arange(sum(self.lengths()), device=device)
        start = t["cu_seqlens"][:-1].long().repeat_interleave(each)
        return position - start, each.repeat_interleave(each)

    # Cost -----------------------------------------------------------------------------------------------------------

    def pairs(self) -> int:
        """Returns the number of scores per head: the (query, key) pairs that are not masked."""
        return sum(n * (n + 1) // 2 if self.causal else n * n for n in self.lengths())

    def cost(self, dtype: torch.dtype) -> Cost:
        return self.spec.cost(self.pairs(), sum(self.lengths()), self.heads, DIM, dtype.itemsize)

    def exponentials(self) -> tuple[int, int]:
        """Returns one exponential per score; the backward recomputes them."""
        return self.heads * self.pairs(), self.heads * self.pairs()

    # Peers ------------------------------------------------------------------------------------------------------------

    def peers(self) -> list[Peer]:
        sdpa = {"sdpa-flash": SDPBackend.FLASH_ATTENTION, "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION}
        sdpa["sdpa-cudnn"] = SDPBackend.CUDNN_ATTENTION
        fused = [Peer(name, lambda t, b=backend: self._sdpa(b)) for name, backend in sdpa.items()]
        fused += [Peer("flex", self._flex), Peer("fa4", self._flash_attention_4)]
        return fused if self.form == "packed" else [*super().peers(), *fused]

    def _sdpa(self, backend: SDPBackend) -> Run:
        if self.form == "packed":
            return self._sdpa_nested(backend)

        def run(t: Inputs) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in self.qkv(t))
            mask = self.valid(t)[:, None, None, :].expand(-1, 1, self.length, -1) if "lengths" in t else None
            with sdpa_kernel(backend):
                o = F.scaled_dot_product_attention(q, k, v, mask, self.dropout_p, is_causal=self.causal)
            return o.transpose(1, 2)

        return run

    def _sdpa_nested(self, backend: SDPBackend) -> Run:
        limits = {"min_seqlen": min(self.lengths()), "max_seqlen": max(self.lengths())}

        def run(t: Inputs) -> Tensor:
            nested = torch.nested.nested_tensor_from_jagged
            qkv = [nested(x, t["cu_seqlens"], **limits).transpose(1, 2) for x in self.qkv(t)]
            with sdpa_kernel(backend):
                o = F.scaled_dot_product_attention(*qkv, dropout_p=self.dropout_p, is_causal=self.causal)
            return o.transpose(1, 2).values()

        return run

    def _flex(self, t: Inputs) -> Run:
        if self.dropout_p:
            raise Unavailable("has no dropout")
        if t["seed"].device.type == "cpu":
            raise Unavailable("has no backward on a CPU")
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        packed, compiled = self.form == "packed", torch.compile(flex_attention, dynamic=False)
        rows = sum(self.lengths()) if packed else self.length
        mask = None
        if self.causal or self.form != "whole":
            batch = self.batch if self.form == "padded" else None
            mask = create_block_mask(self._visible(t), batch, None, rows, rows, device=t["seed"].device, _compile=True)

        def run(t: Inputs) -> Tensor:
            q, k, v = ((x[None] if packed else x).transpose(1, 2) for x in self.qkv(t))
            o = compiled(q, k, v, block_mask=mask).transpose(1, 2)
            return o[0] if packed else o

        return run

    def _visible(self, t: Inputs) -> Callable[..., Tensor]:
        """Returns FlexAttention's mask function: causal, padded or packed."""
        if self.causal:
            return lambda b, h, q, k: q >= k
        if self.form == "padded":
            each = t["lengths"]
            return lambda b, h, q, k: k < each[b]
        each = torch.tensor(self.lengths(), device=t["seed"].device)
        sequence = torch.arange(self.batch, device=each.device).repeat_interleave(each)
        return lambda b, h, q, k: sequence[q] == sequence[k]

    def _flash_attention_4(self, t: Inputs) -> Run:
        if self.dropout_p:
            raise Unavailable("has no dropout")
        if self.form == "padded":
            raise Unavailable("takes whole or packed batches")
        module, longest = package("flash_attn.cute"), max(self.lengths())

        def run(t: Inputs) -> Tensor:
            if self.form == "whole":
                return module.flash_attn_func(*self.qkv(t), causal=self.causal)[0]
            cu = t["cu_seqlens"]
            options = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": longest, "max_seqlen_k": longest}
            return module.flash_attn_varlen_func(*self.qkv(t), **options, causal=self.causal)[0]

        return run


@dataclass(frozen=True)
class AttentionPacked(Attention):
    """Measures attention_packed, which reads the projection (..., 3, H, D) and returns one gradient of that shape.

    Peers take the three views of the projection.
    """

    op = "attention_packed"

    def projections(self, generator: torch.Generator) -> Inputs:
        return {"qkv": randn(generator, *self.rows(), 3, self.heads, DIM)}

    def qkv(self, t: Inputs) -> tuple[Tensor, ...]:
        return t["qkv"].unbind(-3)

    def with_qkv(self, t: Inputs, *qkv: Tensor) -> Inputs:
        return t | {"qkv": torch.stack(qkv, dim=-3)}

    def ours(self, t: Inputs, backend: str) -> Tensor:
        return fastlm.attention_packed(t["qkv"], **self.options(t), backend=backend)


def cases(grid: Grid) -> Iterator[Case]:
    """Yields the papers' lengths with and without dropout, attention_packed (which the models use), padded and packed
    batches of realistic lengths, then other lengths."""

    def case(kind: type[Attention], length: int, p: float, **options: Any) -> Case:
        batch = max(1, grid.tokens // length)
        heads = options.get("heads", 12)
        return kind(f"{batch} x {length} x {heads}", p, batch=batch, length=length, **options)

    for p in (0.1, 0.0):
        yield case(Attention, 128, p, **({"heads": 4} if grid.small else {}))
    if grid.small:
        return
    for length in (512, 1024):
        for causal in (False, True):
            yield from (case(Attention, length, p, causal=causal) for p in (0.1, 0.0))
    yield case(AttentionPacked, 512, 0.1, causal=True)
    yield from (case(AttentionPacked, length, 0.1) for length in (128, 512))
    yield case(AttentionPacked, 512, 0.1, heads=16)
    yield from (case(Attention, 512, p, form=form) for form in ("padded", "packed") for p in (0.1, 0.0))
    if grid.sweeps:
        yield from (case(Attention, length, p) for length in (64, 256, 2048, 4096) for p in (0.1, 0.0))
