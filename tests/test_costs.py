"""The minimum bytes and FLOPs of each op, compared with numbers computed by hand."""

from __future__ import annotations

from pathlib import Path

from fastlm.ops import SPECS
from fastlm.ops._cost import Cost
from fastlm.ops.linear_cross_entropy import row_cost


def test_layer_norms():
    """BERT-base, 32768 rows of 768 in bf16: 25,165,824 elements in 50,331,648 bytes; 262,144 bytes of statistics."""
    n, mb, statistics = 25_165_824, 50_331_648, 262_144
    norm = SPECS["layer_norm"].cost(32768, 768)
    assert norm == Cost(100_663_296 + statistics, 176_160_768, 150_994_944 + statistics, 327_155_712)
    assert SPECS["add_layer_norm"].cost(32768, 768) == Cost(4 * mb + statistics, 10 * n, 4 * mb + statistics, 15 * n)
    lean = SPECS["add_layer_norm"].cost(32768, 768, dropout=False, keep_sum=False)
    assert lean == Cost(3 * mb + statistics, 9 * n, 3 * mb + statistics, 14 * n)
    for op, forward, backward in (("gelu_layer_norm", 18, 34), ("layer_norm_gelu", 17, 34)):
        assert SPECS[op].cost(32768, 768) == norm._replace(forward_flops=forward * n, backward_flops=backward * n)


def test_bias_gelu():
    """Two rows of 3 in fp32: 6 elements, 24 bytes."""
    assert SPECS["bias_gelu"].cost(2, 3, element=4) == Cost(48, 66, 72, 126)


def test_embedding_layer_norm():
    """4 tokens (8 elements), E = 2, V = 3, 2 positions, no segments, bf16 activations, fp32 tables. Bytes:

        forward    40 of tables ((3 + 2) * 2 * 4), 32 of ids, 32 of y and sum, 32 of statistics
        backward   32, 32, 32 as above, 40 of gradients

    5 segments add 40 bytes of table or gradients to each, and 32 of ids.
    """
    assert SPECS["embedding_layer_norm"].cost(4, 2, 3, positions=2) == Cost(136, 72, 136, 128)
    assert SPECS["embedding_layer_norm"].cost(4, 2, 3, positions=2, segments=5) == Cost(208, 80, 208, 136)
    # GPT-1, without layer norm: 16 bytes less (no stored sum) and no statistics. FLOPs are those of sum and dropout.
    assert SPECS["embedding_layer_norm"].cost(4, 2, 3, positions=2, layer_norm=False) == Cost(88, 16, 88, 24)


def test_attention():
    """GPT-1: 128 sequences of 512, 12 heads of 64, bf16.

    q, k, v and o have 50,331,648 elements (100,663,296 bytes) each, the LSE 786,432 (3,145,728 bytes). Each product
    takes 128 FLOP for each of 402,653,184 scores: 51,539,607,552.
    """
    product, lse = 51_539_607_552, 3_145_728
    forward, backward = 402_653_184 + lse, 805_306_368 + lse
    assert SPECS["attention"].cost(128 * 512 * 512, 128 * 512, 12, 64) == Cost(
        forward, 2 * product, backward, 5 * product
    )
    # One row, two heads of 3, fp32: 6 elements; 2 scores, 6 FLOP each per product
    assert SPECS["attention"].cost(1, 1, 2, 3, element=4) == Cost(96 + 8, 24, 192 + 8, 60)


def test_linear_cross_entropy():
    """GPT-1: 32768 tokens, E = 768, V = 40478, bf16.

    x has 25,165,824 elements, W 31,087,104. A product takes 2 * 32768 * 31,087,104 = 2,037,324,447,744 FLOP. Bytes:

        forward    2 * 56,252,928 of x and W, 262,144 of targets, 4 of the loss
        backward   2 * 81,418,752 of x, W and dx, 4 * 31,087,104 of dW
    """
    cost = SPECS["linear_cross_entropy"].cost(32768, 768, 40478)
    assert cost == Cost(112_768_004, 2_037_324_447_744, 287_185_920, 4_074_648_895_488)
    # x has 6 and W 8 elements of 4 bytes; a product takes 2 * 3 * 2 * 4 FLOP
    assert SPECS["linear_cross_entropy"].cost(3, 2, 4, element=4) == Cost(56 + 24 + 4, 48, 4 * 20 + 32, 96)


def test_cross_entropy():
    """BERT, 4915 predicted positions, V = 30522, bf16: 300,031,260 bytes of logits, and 12 per row each way."""
    assert SPECS["cross_entropy"].cost(4915, 30522) == Cost(300_031_260 + 58_980, 0, 600_062_520 + 58_980, 0)


def test_cross_entropy_rows():
    """BERT, 4915 predicted positions, V = 30522, bf16: 150,015,630 logits of 2 bytes, and 16 bytes per row."""
    assert row_cost(4915, 30522) == Cost(300_031_260 + 78_640, 0, 300_031_260, 0)


def test_adamw():
    """Ten parameters in fp32: 40 bytes of gradients twice, 80 of parameters, 160 of moments."""
    assert SPECS["adamw"].cost(10) == Cost(320, 190, 0, 0)
    assert SPECS["adamw"].cost(10, element=2) == Cost(240, 190, 0, 0)


def test_every_cost_is_compared():
    """Looks for the name of each op in this file, so that a new op's cost gets numbers computed by hand."""
    source = Path(__file__).read_text()
    compared = {spec.cost for op, spec in SPECS.items() if f'"{op}"' in source}
    assert [op for op, spec in SPECS.items() if spec.cost not in compared] == []
