"""Prints a run as tables, one line per shape and pass, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.limits import Limits
from benchmarks.results import Record, Results

Table = tuple[list[str], list[list[str]]]


def terminal(results: Results) -> str:
    """Returns the whole report: header, tables, and the reasons for missing times."""
    parts = [head(results)]
    for name, records in grouped(results.records).items():
        title = f"{name}, {records[0].dtype}"
        parts.append("\n".join([title, *aligned(table(records)), *notes(records)]))
    return "\n\n".join(parts)


def head(results: Results) -> str:
    """Returns lines about the machine and its limits."""
    machine, limits = results.machine, Limits.from_json(results.limits)
    versions = results.versions
    lines = [
        f"{machine['name']}, torch {versions['torch']}, triton {versions.get('triton', 'none')}, commit "
        f"{results.commit['sha'][:10]}{' with changes' if results.commit['dirty'] else ''}",
        "its limits, measured in this run: " + limits_line(limits),
    ]
    if machine["device"] == "cpu":
        lines.append(f"no GPU: measured on the CPU with {machine['threads']} thread(s); caches are not flushed")
    if busy(results):
        lines.append(f"{machine['cpus']} CPUs with a load of {machine['load']} before this run: times are unreliable")
    return "\n".join(lines)


def busy(results: Results) -> bool:
    """Returns whether other processes used much of the CPU when the run began; False for runs on a GPU."""
    machine = results.machine
    return machine["device"] == "cpu" and machine["load"] > machine["cpus"] / 2


def limits_line(limits: Limits) -> str:
    size = limits.gemm_size
    parts = [f"copy {_rate(limits.copy_rate, 'B/s')}", f"{limits.dtype} {size}^3 product {_rate(limits.gemm_flops)}"]
    if limits.exponentials:
        parts.append(f"{_rate(limits.exponentials, 'exp/s')}")
    return ", ".join(parts)


def grouped(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    return groups


def best(records: Iterable[Record]) -> Record | None:
    """Returns the fastest timed record of fastlm, or None."""
    ours = [r for r in records if r.ours and r.status == "timed"]
    return min(ours, key=lambda r: r.median_us, default=None)


def table(records: Sequence[Record]) -> Table:
    """Returns one row per shape and pass: fastlm's fastest backend, then each peer's time divided by fastlm's."""
    peers = list(dict.fromkeys(r.candidate for r in records if not r.ours and r.status != "skipped"))
    if records[0].kind == "model":
        return _model_table(records, peers)
    if records[0].kind == "feeding":
        return _feeding_table(records)
    header = ["shape", "pass", "ours", "us", "±%", "rate", "of limit", "extra MB", *(f"x {p}" for p in peers)]
    rows = []
    for (shape, pass_), group in _by_shape(records).items():
        ours = best(group)
        cells = [shape, pass_, "-", "", "", "", "", ""]
        if ours is not None:
            cells = [shape, pass_, ours.candidate, _us(ours.median_us), _spread(ours), _achieved(ours)]
            cells += [f"{ours.fraction:.0%} {ours.bound}", _megabytes(ours)]
        rows.append(cells + [_ratio(_of(group, peer), ours) for peer in peers])
    return _without_empty(header, rows)


def _model_table(records: Sequence[Record], peers: list[str]) -> Table:
    header = ["shape", "ours", "ms", "±%", "tokens/s", "MFU", "extra MB", *(f"x {p}" for p in peers)]
    rows = []
    for shape, group in _by_model(records):
        ours = best(group)
        cells = [shape, "-", "", "", "", "", ""]
        if ours is not None:
            rate, mfu = ours.tokens / ours.median_us * 1e6, "" if ours.mfu is None else f"{ours.mfu:.1%}"
            cells = [shape, ours.candidate, f"{ours.median_us / 1e3:.1f}", _spread(ours), f"{rate:,.0f}", mfu]
            cells.append(_megabytes(ours))
        rows.append(cells + [_ratio(_of(group, peer), ours) for peer in peers])
    return _without_empty(header, rows)


def _feeding_table(records: Sequence[Record]) -> Table:
    header = ["shape", "pass", "us", "±%", "examples/s", "tokens/s", "one H100 at most, examples/s"]
    rows = []
    for r in records:
        examples, tokens = (count / r.median_us * 1e6 for count in (r.parameters["examples"], r.tokens))
        most = r.parameters["examples"] / r.parameters["h100_us"] * 1e6
        rates = (f"{rate:,.0f}" for rate in (examples, tokens, most))
        rows.append([r.shape, r.pass_, _us(r.median_us), _spread(r), *rates])
    return header, rows


def _without_empty(header: list[str], rows: list[list[str]]) -> Table:
    """Removes empty columns: a CPU has no MFU and no peak memory."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def notes(records: Sequence[Record]) -> list[str]:
    """Lists why candidates were skipped, refused or failed, each reason once."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for r in records:
        if r.status != "timed":
            reasons.setdefault((r.status, r.candidate, r.reason), []).append(r.shape)
    every = {r.shape for r in records}
    lines = []
    for (status, candidate, reason), shapes in reasons.items():
        where = "" if set(shapes) == every else f" [{', '.join(dict.fromkeys(shapes))}]"
        lines.append(f"  {candidate} {status}: {reason}{where}")
    return lines


def aligned(table: Table) -> list[str]:
    header, rows = table
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    left = len([h for h in header if h in ("shape", "pass", "ours", "model", "batch")])

    def line(row: list[str]) -> str:
        cells = (c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return "  ".join(cells).rstrip()

    return [line(header), "  ".join("-" * w for w in widths), *map(line, rows)]


def markdown(table: Table) -> str:
    header, rows = table
    rule = ["---" if h in ("shape", "pass", "ours", "model", "batch") else "---:" for h in header]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])


def summary(results: Results) -> str:
    """Returns a page of Markdown: tables of forward plus backward, the ops farthest from their lower bounds, and
    fastlm's failures."""
    parts = [head(results).replace("\n", "\n\n")]
    for name, records in grouped(results.records).items():
        whole = [r for r in records if r.pass_ in ("both", "step") or r.kind == "feeding"]
        parts.append(f"**{name}**, {records[0].dtype}\n\n{markdown(table(whole))}")
    lowest = [f"{r.name} {r.shape} {r.pass_} ({r.candidate}): {r.fraction:.0%} of {r.bound}" for r in worst(results)]
    parts.append("Farthest from the limit: " + "; ".join(lowest) if lowest else "Nothing of fastlm was timed.")
    wrong = [r for r in results.records if r.ours and r.status in ("refused", "failed")]
    notes = [f"- {r.status}: {r.name} {r.shape} {r.pass_} {r.candidate}: {r.reason}" for r in wrong]
    notes += [f"- left out: {text}" for text in results.left_out]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def worst(results: Results, count: int = 3) -> list[Record]:
    """Returns the records of fastlm's fastest backends that are farthest from their lower bounds."""
    groups = [g for records in grouped(results.records).values() for g in _by_shape(records).values()]
    found = [r for r in map(best, groups) if r is not None and r.fraction is not None]
    return sorted(found, key=lambda r: r.fraction)[:count]


def _by_shape(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.shape, record.pass_), []).append(record)
    return groups


def _by_model(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Yields, per shape, the peers' records with those of fastlm's model, and with those of the patched one."""
    for (shape, _), group in _by_shape(records).items():
        peers = [r for r in group if not r.ours]
        patched = [r for r in group if r.candidate.startswith("patched")]
        ours = [r for r in group if r.ours and r not in patched]
        for part in (ours, patched):
            if any(r.status == "timed" for r in part) or (part is ours and not patched):
                yield shape, peers + part


def _of(records: Iterable[Record], candidate: str) -> Record | None:
    return next((r for r in records if r.candidate == candidate), None)


def _ratio(peer: Record | None, ours: Record | None) -> str:
    if peer is None or peer.status == "skipped":
        return "-"
    if peer.status != "timed":
        return peer.status
    return f"{peer.median_us / ours.median_us:.2f}" if ours is not None else _us(peer.median_us)


def _us(us: float) -> str:
    return f"{us:,.1f}" if us < 1000 else f"{us:,.0f}"


def _spread(record: Record) -> str:
    """Returns half the interquartile range, in per cent of the median."""
    low, high = record.quartiles_us
    return f"{(high - low) / 2 / record.median_us * 100:.1f}"


def _achieved(record: Record) -> str:
    """Returns the bytes per second if the copy limits the op, else the FLOP/s."""
    if record.bound == "copy":
        return _rate(record.bytes / record.median_us * 1e6, "B/s")
    return _rate(record.flops / record.median_us * 1e6)


def _rate(value: float, unit: str = "FLOP/s") -> str:
    prefix, size = next((p for p in (("T", 1e12), ("G", 1e9)) if value >= p[1]), ("M", 1e6))
    scaled = value / size
    return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {prefix}{unit}"


def _megabytes(record: Record) -> str:
    return "" if record.extra_bytes is None else f"{record.extra_bytes / 1e6:,.0f}"
