"""The report of `fastlm.patch`: the modules that it replaced, and those that it left, with reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Replaced(NamedTuple):
    """Names a module whose class was replaced, and the switch that it belongs to."""

    path: str
    kind: str
    switch: str


class Left(NamedTuple):
    """Names a module, or a part of it, that was left as it was, and says why."""

    path: str
    kind: str
    switch: str
    reason: str


@dataclass
class Report:
    """Lists what one call of `patch` or `unpatch` did. `print(report)` shows it, modules of one class in one line."""

    model: str
    replaced: list[Replaced] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    already: int = 0  # modules that an earlier call had replaced
    restored: int = 0  # modules that `unpatch` put back

    def count(self, switch: str) -> int:
        """Returns how many modules were replaced for a switch."""
        return sum(entry.switch == switch for entry in self.replaced)

    def __str__(self) -> str:
        lines = [f"{self.model}: {self._summary()}"]
        groups = Counter((entry.switch, entry.kind) for entry in self.replaced)
        lines += [f"  {switch:<11} {count:>4}  {kind}" for (switch, kind), count in sorted(groups.items())]
        if self.left:
            lines.append("left as it was:")
            reasons = Counter((entry.switch, entry.kind, entry.reason) for entry in self.left)
            lines += [f"  {s:<11} {count:>4}  {kind}: {why}" for (s, kind, why), count in sorted(reasons.items())]
        return "\n".join(lines)

    def _summary(self) -> str:
        if self.restored:
            return f"{_modules(self.restored)} put back"
        before = f", {_modules(self.already)} replaced before" if self.already else ""
        return f"{_modules(len(self.replaced))} replaced{before}" if self.replaced or before else "nothing replaced"


def _modules(count: int) -> str:
    return f"{count} module" if count == 1 else f"{count} modules"
