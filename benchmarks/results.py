"""What a run found, as a JSON file: machine, versions, limits and every sample.

The file is rewritten whole, or not at all, after each group of records, so that a run that ends early leaves what it
has. One record a line keeps differences between two files readable.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

SCHEMA = 1
KINDS = ("op", "model")
# "both": forward and backward; "step": of a model's training, or of its optimizer.
PASSES = ("forward", "backward", "both", "step")
STATUSES = ("timed", "refused", "skipped", "failed")
BOUNDS = ("copy", "matrix", "exponential")


class ResultsError(ValueError):
    """A file that is not one of ours, or that says something impossible."""


@dataclass(frozen=True)
class Record:
    """One candidate's one pass over one shape. What was not timed says why in `reason`."""

    kind: str
    name: str  # the op, or the model
    shape: str
    dtype: str
    pass_: str
    candidate: str
    ours: bool
    status: str
    reason: str | None = None
    samples_us: tuple[float, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    bytes: int | None = None  # the least that must move, be multiplied, be exponentiated
    flops: int | None = None
    exponentials: int | None = None
    floor_us: float | None = None  # what that takes at the machine's own limits, the largest of the three
    bound: str | None = None  # which one that is
    extra_bytes: int | None = None  # peak of memory beyond the inputs and what is returned
    error: float | None = None  # in units of the yardstick's error, as check.py has it
    tokens: int | None = None  # of a model's step
    mfu: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What two files are compared by."""
        return (self.kind, self.name, self.shape, self.dtype, self.pass_, self.candidate)

    @property
    def median_us(self) -> float:
        return statistics.median(self.samples_us)

    @property
    def quartiles_us(self) -> tuple[float, float]:
        return quartiles(self.samples_us)

    @property
    def fraction(self) -> float | None:
        """Of the machine's own limit."""
        return None if self.floor_us is None or self.status != "timed" else self.floor_us / self.median_us

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
        """Raises ResultsError where the record contradicts itself."""
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
    """First and third quartile, each within the samples."""
    if len(samples) == 1:
        return samples[0], samples[0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high


@dataclass
class Results:
    """All of a run: what it ran on, and its records."""

    created: str
    command: str
    quick: bool
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: dict[str, Any]
    limits: dict[str, Any]
    left_out: list[str] = field(default_factory=list)  # cases without records, and why
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
        """Raises ResultsError for what is no file of results."""
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
