"""Measurements: `python -m benchmarks.resources` compiles every Triton kernel for chips that need not be there."""
