"""The JSON file of a run's results: machine, versions, limits and every sample.

The file is replaced atomically after each case, so that an interrupted run keeps its results so far. Each record is
one line, so that a diff of two files is readable.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

SCHEMA = 1
KINDS = ("op", "model", "feeding")
# "both": forward and backward; "step": one training step of a model, or one update of an optimizer; "encode" and
# "batch": see feeding.py.
PASSES = ("forward", "backward", "both", "step", "encode", "batch")
STATUSES = ("timed", "refused", "skipped", "failed")
BOUNDS = ("copy", "matrix", "exponential")


class ResultsError(ValueError):
    """Reports a file that is not a results file, or that contradicts itself."""


@dataclass(frozen=True)
class Record:
    """Holds one pass of one candidate at one shape. `reason` says why it was not timed."""

    kind: str
    name: str  # the op, or the model, or "feeding"
    shape: str
    dtype: str
    pass_: str
    candidate: str
    ours: bool
    status: str
    reason: str | None = None
    samples_us: tuple[float, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    bytes: int | None = None  # minimum number of bytes read and written
    flops: int | None = None  # minimum number of FLOPs in matrix products
    exponentials: int | None = None  # minimum number of exponentials
    lower_bound_us: float | None = None  # from these three numbers and the machine's limits (limits.py)
    bound: str | None = None  # the limit that sets lower_bound_us
    extra_bytes: int | None = None  # peak memory beyond inputs and results
    error: float | None = None  # divided by the yardstick's error (check.py); for a model see models.py
    tokens: int | None = None  # per step of a model, or per pass of feeding
    mfu: float | None = None  # model FLOPs utilization, a fraction of the GPU's peak

    @property
    def key(self) -> tuple[str, ...]:
        """Returns the fields that identify a measurement, to find it in another file."""
        return (self.kind, self.name, self.shape, self.dtype, self.pass_, self.candidate)

    @property
    def median_us(self) -> float:
        return statistics.median(self.samples_us)

    @property
    def quartiles_us(self) -> tuple[float, float]:
        return quartiles(self.samples_us)

    @property
    def fraction(self) -> float | None:
        """Returns the lower bound divided by the median, None without a bound or a time. 1 is the machine's limit."""
        return None if self.lower_bound_us is None or self.status != "timed" else self.lower_bound_us / self.median_us

    def to_json(self) -> dict[str, Any]:
        values = {("pass" if name == "pass_" else name): value for name, value in asdict(self).items()}
        if self.status == "timed":
            low, high = self.quartiles_us
            values |= {"median_us": round(self.median_us, 3), "q1_us": round(low, 3), "q3_us": round(high, 3)}
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        derived = {"median_us", "q1_us", "q3_us"}
        given = {("pass_" if n == "pass" else n): v for n, v in values.items() if n not in derived}
        known = {f.name for f in fields(cls)}
        if given.keys() != known:
            raise ResultsError(f"a record's names differ from the schema's in {sorted(given.keys() ^ known)}")
        record = cls(**given | {"samples_us": tuple(given["samples_us"])})
        record.check()
        if record.status == "timed" and abs(values["median_us"] - record.median_us) > 0.001:
            raise ResultsError(f"{record.key}: median_us {values['median_us']} is not that of the samples")
        return record

    def check(self) -> None:
        """Raises ResultsError if the record contradicts itself."""
        for name, allowed in (("kind", KINDS), ("pass_", PASSES), ("status", STATUSES), ("bound", (*BOUNDS, None))):
            if getattr(self, name) not in allowed:
                raise ResultsError(f"{self.key}: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        timed = self.status == "timed"
        if timed != bool(self.samples_us) or timed == bool(self.reason):
            raise ResultsError(f"{self.key}: 'timed' goes with samples, any other status with a reason")
        if any(not s > 0 for s in self.samples_us):
            raise ResultsError(f"{self.key}: samples must be positive")
        if self.mfu is not None and not 0 < self.mfu < 1:
            raise ResultsError(f"{self.key}: an MFU of {self.mfu} is impossible: the count or the peak is wrong")


def quartiles(samples: tuple[float, ...]) -> tuple[float, float]:
    """Returns the first and third quartile, which lie within the range of the samples."""
    if len(samples) == 1:
        return samples[0], samples[0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high


@dataclass
class Results:
    """Holds one run: its machine, versions and limits, and its records."""

    created: str
    command: str
    quick: bool
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: dict[str, Any]
    limits: dict[str, Any]
    left_out: list[str] = field(default_factory=list)  # cases without records, each with the reason
    records: list[Record] = field(default_factory=list)

    def write(self, file: Path) -> None:
        for record in self.records:
            record.check()
        head = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "records"}
        lines = ",\n".join(f"    {json.dumps(r.to_json())}" for r in self.records)
        text = json.dumps({"schema": SCHEMA, **head}, indent=2)[:-2] + f',\n  "records": [\n{lines}\n  ]\n}}\n'
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(file)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads a results file; raises ResultsError if it is not one."""
        try:
            values = json.loads(Path(file).read_text())
        except json.JSONDecodeError as error:
            raise ResultsError(f"{file} is not JSON: {error}") from error
        expected = {"schema", *(f.name for f in fields(cls))}
        if not isinstance(values, dict) or values.get("schema") != SCHEMA or values.keys() != expected:
            raise ResultsError(f"{file} is not a file of results of schema {SCHEMA}")
        del values["schema"]
        return cls(**values | {"records": [Record.from_json(r) for r in values["records"]]})

    def timed(self) -> list[Record]:
        return [r for r in self.records if r.status == "timed"]
