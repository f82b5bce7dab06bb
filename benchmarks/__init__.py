"""Measurements of speed and of kernel resources.

`python -m benchmarks` times every op and both models, and compares them with the machine's limits and with other
implementations. `python -m benchmarks visit` builds, tests and measures on a GPU within a time limit.
`python -m benchmarks predict` predicts times on an H100 from machine code; it measures nothing and needs no GPU.
`python -m benchmarks.resources` compiles every Triton kernel for several GPU targets; it needs no GPU.
"""
