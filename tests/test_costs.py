"""The floors of fastlm.costs, against cases worked by hand."""

from __future__ import annotations

from fastlm import costs
from fastlm.costs import Cost


def test_linear_cross_entropy():
    """GPT-1's: 32768 tokens, E = 768, V = 40478, bf16.

    x is 25,165,824 elements, W 31,087,104, and a product 2 * 32768 * 31,087,104 = 2,037,324,447,744 operations.
    Forward 2 * 56,252,928 bytes, targets 262,144, the loss 4; backward 2 * 81,418,752 and 4 * 31,087,104 of dW.
    """
    cost = costs.linear_cross_entropy(32768, 768, 40478)
    assert cost == Cost(112_768_004, 2_037_324_447_744, 287_185_920, 4_074_648_895_488)
    # x 6, W 8 elements of 4 bytes; a product of 2 * 3 * 2 * 4
    assert costs.linear_cross_entropy(3, 2, 4, element=4) == Cost(56 + 24 + 4, 48, 4 * 20 + 32, 96)


def test_cross_entropy_rows():
    """BERT's 4915 masked rows of 30522 words in bf16: 150,015,630 logits of 2 bytes, and 16 bytes a row."""
    assert costs.cross_entropy_rows(4915, 30522) == Cost(300_031_260 + 78_640, 0, 300_031_260, 0)
