"""Lists the registers, spills and shared memory of each Triton kernel. Nothing runs, and no GPU is needed.

`python -m benchmarks.resources [STEM ...]` compiles the kernels and prints a table, or with --json one JSON object per
line. Each module here has the name of the file in kernels/ whose launches it lists, and defines

    def cases() -> Iterator[tuple[str, Callable[[], None]]]

which yields, for each variant to compile, its name and a call of the launcher on tensors without data (`empty`).
"""

from __future__ import annotations

import torch
from torch import Tensor

BF16, FP32 = torch.bfloat16, torch.float32


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    """Returns a tensor without data, on the meta device. Its address is 0, which Triton sees as aligned to 16 bytes."""
    return torch.empty(shape, dtype=dtype, device="meta")
