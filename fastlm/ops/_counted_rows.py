"""The products of the loss over the vocabulary: over all rows, or over those alone whose target is not ignored.

The host does not wait for a GPU to learn how many rows count. They are moved to the front there, and torch's grouped
products, with one group, read their number on the device. On a CPU the rows are selected.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The columns that a bias adds to x and W: the bias is the column of W that meets ones in x. Rows stay aligned to 16
# bytes, as grouped products need them.
BIAS_COLUMNS = 8


class AllRows:
    """Computes the three products of a chunk of at most `size` rows, for W (V, E) and a bias (V,) or None."""

    def __init__(self, w: Tensor, bias: Tensor | None, size: int):
        self.w, self.bias = w, bias
        self.room = w.new_empty(size, w.shape[0])

    def logits(self, x: Tensor, start: int) -> Tensor:
        """Returns x W^T + bias of the rows x (n, E), the chunk that begins at row `start`."""
        out = self.room[: x.shape[0]]
        if self.bias is None:
            return torch.mm(x, self.w.t(), out=out)
        return torch.addmm(self.bias, x, self.w.t(), out=out)

    def store_dx(self, out: Tensor, dlogits: Tensor, start: int) -> None:
        torch.mm(dlogits, self.w, out=out)

    def add_dw(self, dw: Tensor, dlogits: Tensor, x: Tensor, start: int) -> None:
        """Adds dlogits^T x to dw, in dw's dtype; dlogits and x may be in half precision."""
        if dw.device.type == "cuda" and x.dtype != dw.dtype:
            torch.addmm(dw, dlogits.t(), x, out_dtype=dw.dtype, out=dw)
        else:  # the CPU has no product of mixed dtypes
            dw.addmm_(dlogits.t().to(dw.dtype), x.to(dw.dtype))


class CountedRows:
    """Computes the three products for the first `count` () of all rows, a number on the device.

    The other rows of logits and dx are left as they are found in memory. A chunk without rows that count takes a few
    microseconds per product. dw of a chunk is rounded to the dtype of x.
    """

    def __init__(self, w: Tensor, count: Tensor, rows: int, size: int):
        self.w, self.size = w, size
        begins = torch.arange(0, rows, size, device=w.device, dtype=torch.int32)
        self.ends = (count - begins).clamp_(0, size).split(1)

    def logits(self, x: Tensor, start: int) -> Tensor:
        return F.grouped_mm(x, self.w.t()[None], offs=self.ends[start // self.size])

    def store_dx(self, out: Tensor, dlogits: Tensor, start: int) -> None:
        out.copy_(F.grouped_mm(dlogits, self.w[None], offs=self.ends[start // self.size]))

    def add_dw(self, dw: Tensor, dlogits: Tensor, x: Tensor, start: int) -> None:
        dw += F.grouped_mm(dlogits.t(), x, offs=self.ends[start // self.size])[0]


def has_grouped_products(x: Tensor, backend: str) -> bool:
    """Returns whether `CountedRows` serves x (N, E).

    On compute capability 10, torch 2.11 leaves the product of a chunk without rows as it is found in memory; on
    8, the host waits.
    """
    if x.dtype != torch.bfloat16 or x.shape[1] % BIAS_COLUMNS or backend not in ("triton", "cuda"):
        return False
    return x.device.type == "cuda" and torch.cuda.get_device_capability(x.device)[0] == 9


def with_bias_column(x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns x (N, E + 8) and w (V, E + 8) whose product contains the bias."""
    if bias is None:
        return x, w
    ones = x.new_zeros(x.shape[0], BIAS_COLUMNS)
    ones[:, 0] = 1
    return torch.cat((x, ones), 1), torch.cat((w, F.pad(bias[:, None], (0, BIAS_COLUMNS - 1))), 1)


def counted_first(targets: Tensor, ignore_index: int) -> Tensor:
    """Returns the indices of the rows that count: on a CPU those alone, elsewhere followed by all others."""
    if targets.device.type == "cpu":
        return (targets != ignore_index).nonzero()[:, 0]
    return torch.argsort(targets == ignore_index, stable=True)
