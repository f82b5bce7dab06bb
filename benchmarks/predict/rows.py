"""One predicted row per case, pass and backend, and the file that holds them."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.predict.chip import Chip
from benchmarks.predict.predict import predict
from benchmarks.predict.prediction import Prediction
from benchmarks.predict.recording import Recorded

KIND = "predicted"
DEVICE = "model of an H100 SXM5"
ADDRESS = 1 << 32  # parameters of 8 bytes from here on are taken for addresses


class PredictedError(ValueError):
    """Says why a file cannot be read as predicted times."""


@dataclass(frozen=True)
class Part:
    """Holds launches that differ only in addresses, and the prediction for one of them."""

    prediction: Prediction
    count: int

    def to_json(self) -> dict[str, Any]:
        p = self.prediction
        facts = {"kernel": p.kernel.name, "count": self.count, "predicted_us": p.scaled_us, "unscaled_us": p.us}
        facts |= {"spread": p.spread, "hbm_bytes": p.hbm_bytes, "hbm_bound_us": p.bound_us, "ctas_per_sm": p.held}
        return facts | {"registers": p.kernel.registers, "in_use": p.resources, "slots_lost": p.idle}


@dataclass(frozen=True)
class Row:
    """Holds the predicted time of one pass of a case on one backend: the sum over its launches."""

    op: str
    shape: str
    pass_: str
    backend: str
    flops: float
    parts: Sequence[Part]

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.op, self.shape, self.pass_, self.backend

    @functools.cached_property
    def predicted_us(self) -> float:
        return sum(part.count * part.prediction.scaled_us for part in self.parts)

    @property
    def bound_us(self) -> float:
        """Returns the time of the bytes from and to HBM."""
        return sum(part.count * part.prediction.bound_us for part in self.parts)

    @property
    def longest(self) -> Part:
        return max(self.parts, key=lambda part: part.count * part.prediction.scaled_us)

    def to_json(self) -> dict[str, Any]:
        facts = {"op": self.op, "shape": self.shape, "pass": self.pass_, "backend": self.backend}
        facts |= {"predicted_us": self.predicted_us, "hbm_bound_us": self.bound_us, "flops": self.flops}
        return facts | {"launches": [part.to_json() for part in self.parts]}


def predict_parts(launches: Sequence[Recorded], most_bytes: float, chip: Chip) -> list[Part]:
    """Predicts launches. Of those that differ only in addresses, it predicts the first."""
    first: dict[tuple, Recorded] = {}
    counts: dict[tuple, int] = {}
    for recorded in launches:
        key = _key(recorded)
        first.setdefault(key, recorded)
        counts[key] = counts.get(key, 0) + 1
    return [Part(predict(r.kernel, r.launch, chip, most_bytes=most_bytes), counts[key]) for key, r in first.items()]


def _key(recorded: Recorded) -> tuple:
    launch, words = recorded.launch, recorded.launch.parameters
    numbers = [int.from_bytes(words[n : n + 8], "little") for n in range(0, len(words), 8)]
    rest = tuple(ADDRESS if ADDRESS << 8 <= n < 1 << 48 else n for n in numbers)
    return recorded.kernel.cubin, recorded.kernel.name, launch.grid, launch.block, launch.dynamic, rest


def to_json(rows: Sequence[Row], chip: Chip, commit: dict[str, Any]) -> dict[str, Any]:
    """Returns a file's contents. Its "kind" keeps it apart from measured results."""
    facts = {"kind": KIND, "schema": 1, "device": DEVICE, "commit": commit, "chip": dataclasses.asdict(chip)}
    return facts | {"rows": [row.to_json() for row in rows]}


def write(path: Path, contents: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(contents, indent=1) + "\n")
    temporary.replace(path)


def read(path: Path) -> dict[tuple[str, str, str, str], float]:
    """Returns the predicted times of a file, by op, shape, pass and backend. Raises PredictedError for other files."""
    try:
        contents = json.loads(path.read_text())
    except ValueError as error:
        raise PredictedError(f"{path} is not JSON: {error}") from error
    if not isinstance(contents, dict) or (contents.get("kind"), contents.get("schema")) != (KIND, 1):
        raise PredictedError(f"{path} is not a file of predicted times of schema 1")
    return {(r["op"], r["shape"], r["pass"], r["backend"]): r["predicted_us"] for r in contents["rows"]}


def short_name(kernel: str) -> str:
    """Returns the identifier that ends in "kernel" among those of a mangled name (14forward_kernel), or the name."""
    for digits in re.finditer(r"\d+", kernel):
        for start in range(digits.start(), digits.end()):
            word = kernel[digits.end() : digits.end() + int(kernel[start : digits.end()])]
            if word.endswith("kernel") and word.isidentifier():
                return word
    return kernel
