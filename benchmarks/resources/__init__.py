"""What each Triton kernel takes of a chip: registers, spills, shared memory. Nothing runs, and no GPU is needed.

A module of this package is named after the file of kernels/ whose launches it lists, and has

    def cases() -> Iterator[tuple[str, Callable[[], None]]]

which yields, for each variant worth compiling, a name and a call of the launcher on tensors without data
(`empty`). `python -m benchmarks.resources [STEM ...]` compiles them and prints a table; --json prints the same as JSON.
"""

from __future__ import annotations

import torch
from torch import Tensor

BF16, FP32 = torch.bfloat16, torch.float32


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """A tensor of `shape` with no data behind it: what Triton specialises on is that it is aligned."""
    return torch.empty(shape, dtype=dtype, device="meta")
