"""Measurements.

`python -m benchmarks` times every op and both models against the machine's limits and against what a user would pick
instead; `python -m benchmarks visit` does a whole visit to a GPU; `python -m benchmarks.resources` compiles every
Triton kernel for chips that need not be there.
"""
