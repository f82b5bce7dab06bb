"""Records a run of each tiny model, as the tests run it: python tests/recorded_runs.py, after a change of numerics.

A record holds the run's options, the losses of every update, a hash of every trained parameter, and the machine whose
bits they are: other processors, libraries or threads round differently.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy
import tokenizers
import torch
from runs import configuration, losses, run, write_text
from safetensors.numpy import load_file

from fastlm.train.run import NUMERICS

FOLDER = Path(__file__).parent / "recorded"
MODELS = ("gpt1_tiny", "bert_tiny")
OPTIONS = {"accumulation": 1}


def machine() -> dict[str, str]:
    """Returns the facts of the machine that the last bits of a float32 run on one thread depend on."""
    return {
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "tokenizers": tokenizers.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "model": processor(),
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def hashes(folder: Path) -> dict[str, str]:
    """Returns the first 16 digits of the SHA-256 of each trained parameter's bytes."""
    weights = load_file(folder / "model" / "model.safetensors")
    return {name: hashlib.sha256(w.tobytes()).hexdigest()[:16] for name, w in sorted(weights.items())}


def record(model: str, folder: Path, text: Path) -> dict:
    recipe = configuration(text, model, **OPTIONS)
    run(recipe, folder)
    return {
        "numerics": NUMERICS,
        "machine": machine(),
        "recipe": recipe.with_options({"data": ()}).to_json(),
        "updates": losses(folder),
        "weights": hashes(folder),
    }


def main() -> None:
    torch.set_num_threads(1)
    for model in MODELS:
        with tempfile.TemporaryDirectory() as scratch:
            text = write_text(Path(scratch))
            content = record(model, Path(scratch) / "run", text)
        (FOLDER / f"{model}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"{model}: {len(content['updates'])} updates, {len(content['weights'])} parameters")


if __name__ == "__main__":
    main()
