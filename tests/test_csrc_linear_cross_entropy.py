"""csrc/linear_cross_entropy.cu moves the bytes that the comment at its top states."""

from __future__ import annotations

import pytest
import torch

from fastlm import backends


@pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator counts bytes, and it runs where there is no GPU")
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(
    ("vocabulary", "padded", "dtype", "reads"),
    [
        (40478, 40512, torch.bfloat16, 1),
        (700, 704, torch.float32, 1),
        (130000, 130048, torch.float16, 2),
        (40478, 40478, torch.bfloat16, 1),
        (130001, 130001, torch.float16, 2),
    ],
)
def test_a_row_is_read_once_where_it_fits(vocabulary, padded, dtype, reads, gradient):
    import _C_emulated

    rows, ignored = 3, 1
    logits = torch.randn(rows, padded).to(dtype)
    targets = torch.tensor([5, -100, vocabulary - 1])
    losses, lse = torch.empty(rows), torch.empty(rows)
    _C_emulated.take_traffic()
    launch = backends.launchers("cuda", "linear_cross_entropy").cross_entropy_rows
    launch(logits, logits if gradient else None, targets, None, losses, lse, vocabulary, -100, 0.0, 0.0)
    traffic = _C_emulated.take_traffic()
    row = padded * dtype.itemsize
    assert traffic["read"] == (rows - ignored) * row * (reads if gradient else 1)
    assert traffic["written"] == rows * (row * gradient + 8)  # 8: a loss and an LSE
