"""Records a few of our own kernels, compiled for an H100, with a launch of each, for tests/test_benchmarks_predict.py.

TRITON_DISABLE_LINE_INFO=1 python -P tests/recorded_cubins.py      with the checkout on PYTHONPATH; needs nvcc
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.cases import cases
from benchmarks.grid import Grid

CUBINS = Path(__file__).parent / "recorded" / "cubins"
ROOT = Path(__file__).parent.parent
# name: op, end of the shape, backend, pass, and which launch of the pass
KERNELS = {
    "sum_partials_cuda": ("layer_norm", "x 768", "cuda", "backward", 1),
    "layer_norm_forward_triton": ("layer_norm", "x 768", "triton", "forward", 0),
    "attention_forward_triton": ("attention", "x 128 x 12", "triton", "forward", 0),
}


def record() -> None:
    from benchmarks.predict.launches import Launchers

    launchers = Launchers(ROOT, ["layer_norm"])
    CUBINS.mkdir(parents=True, exist_ok=True)
    launches = {}
    for name, (op, shape, backend, pass_, index) in KERNELS.items():
        case = next(c for c in cases(Grid(16384), [op]) if c.shape.endswith(shape))
        passes = {p.name: p for p in launchers.passes(case, backend)}
        recorded = passes[pass_].launches[index]
        (CUBINS / f"{name}.cubin").write_bytes(recorded.kernel.cubin.read_bytes())
        launch = recorded.launch
        facts = {"kernel": recorded.kernel.name, "grid": launch.grid, "block": launch.block, "dynamic": launch.dynamic}
        launches[name] = facts | {"parameters": launch.parameters.hex()}
    (CUBINS / "launches.json").write_text(json.dumps(launches, indent=1) + "\n")


if __name__ == "__main__":
    if os.environ.get("TRITON_DISABLE_LINE_INFO") != "1":
        raise SystemExit("set TRITON_DISABLE_LINE_INFO=1, so that the cubins contain no paths of this machine")
    record()
