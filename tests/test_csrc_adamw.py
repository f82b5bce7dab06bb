"""csrc/adamw.cu moves the bytes that the comment at its top states."""

from __future__ import annotations

import pytest
import torch

import fastlm


@pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator counts bytes, and it runs where there is no GPU")
@pytest.mark.parametrize(("dtype", "norm", "update"), [(torch.float32, 4, 28), (torch.bfloat16, 2, 22)])
def test_bytes(dtype, norm, update):
    import _C_emulated

    shapes = [(300, 64), (8192,), (8,)]
    parameters, gradients = ([torch.randn(s).to(dtype) for s in shapes] for _ in range(2))
    moments = [[torch.zeros(s) for s in shapes] for _ in range(2)]
    elements = sum(p.numel() for p in parameters)
    programs = -(-300 * 64 // 8192) + 1 + 1
    equal = {"rates": torch.full((3,), 0.1), "decays": torch.zeros(3), "betas": (0.9, 0.99), "eps": 1e-8}
    each_step = {"corrections": torch.ones(3, 2), "max_norm": torch.tensor(1.0), "scale": torch.tensor(1.0)}
    _C_emulated.take_traffic()
    fastlm.adamw(parameters, gradients, *moments, **equal, **each_step, backend="cuda")
    traffic = _C_emulated.take_traffic()
    # In addition to the elements, each CTA writes a partial sum, and one CTA writes the norm.
    assert traffic["read"] + traffic["written"] == (norm + update) * elements + 4 * (programs + 1)
    assert traffic["accesses"] == (norm + update) * elements // 16 + programs + 1
