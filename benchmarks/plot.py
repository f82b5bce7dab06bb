"""Draws a run's results: a roofline plot of fastlm's ops, and bars that compare them with the peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.limits import Limits
from benchmarks.report import best, grouped
from benchmarks.results import Record, Results

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
PASS_MARKS = {"forward": "o", "backward": "s", "both": "D", "step": "^"}


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes roofline.png and peers.png and returns their paths. Without matplotlib it prints so and returns []."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        print("no plots: matplotlib is not installed")
        return []
    drawn = {"roofline.png": _roofline(results), "peers.png": _peers(results)}
    for name, figure in drawn.items():
        figure.savefig(folder / f".{name}", dpi=130, format="png")
        (folder / f".{name}").replace(folder / name)
    return [folder / name for name in drawn]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _roofline(results: Results) -> Any:
    """Plots fastlm's ops beside the machine's limits. Left: bytes per second by bytes moved, for ops without matrix
    products. Right: FLOP/s by FLOP per byte, for ops with them."""
    limits = Limits.from_json(results.limits)
    figure = _figure(12, 5)
    left, right = figure.subplots(1, 2)
    by_bound: dict[str, dict[str, list[Record]]] = {"copy": {}, "matrix": {}}
    for name, records in _ops(results).items():
        for record in _ours(records):
            by_bound["copy" if not record.flops else "matrix"].setdefault(name, []).append(record)
    sizes = [size for size, _ in limits.copies]
    left.plot(sizes, [size / us / 1e3 for size, us in limits.copies], color="black", linewidth=1.5, label="copy")
    _scatter(left, by_bound["copy"], lambda r: (r.bytes, r.bytes / r.median_us / 1e3))
    left.set(xscale="log", yscale="log", xlabel="bytes read and written", ylabel="GB/s", title="ops that move bytes")

    points = by_bound["matrix"]
    ridge = limits.gemm_flops / limits.copy_rate
    intensities = [r.flops / r.bytes for group in points.values() for r in group] or [ridge]
    xs = [min(*intensities, ridge) / 3, ridge, max(*intensities, ridge) * 3]
    roof = [min(x * limits.copy_rate, limits.gemm_flops) / 1e9 for x in xs]
    right.plot(xs, roof, color="black", linewidth=1.5, label=f"copy, and {limits.dtype} products")
    _scatter(right, points, lambda r: (r.flops / r.bytes, r.flops / r.median_us / 1e3))
    right.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="GFLOP/s", title="ops with products")
    figure.suptitle(f"{results.machine['name']}: its limits, measured in the same run, and fastlm", fontsize=12)
    return figure


def _scatter(axes: Any, by_op: dict[str, list[Record]], point: Callable[[Record], tuple[float, float]]) -> None:
    """Plots records as points: one colour per op, one marker per pass."""
    for i, (name, records) in enumerate(by_op.items()):
        colour = COLOURS[i % len(COLOURS)]
        for pass_, mark in PASS_MARKS.items():
            some = [point(r) for r in records if r.pass_ == pass_]
            if some:
                axes.scatter(*zip(*some, strict=True), marker=mark, s=30, color=colour, alpha=0.85)
        axes.scatter([], [], color=colour, label=name)
    for pass_, mark in PASS_MARKS.items():
        axes.scatter([], [], marker=mark, facecolors="none", edgecolors="black", label=pass_)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _peers(results: Results) -> Any:
    """Draws one panel per op or model and one group of bars per shape: milliseconds, with a line at the lower bound."""
    panels = [(name, _shapes(records)) for name, records in grouped(results.records).items()]
    panels = [(name, shapes) for name, shapes in panels if shapes]
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns) or 1
    figure = _figure(6.5 * columns, 0.6 + 2.9 * rows)
    cells = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (name, shapes) in zip(cells, panels, strict=False):
        _panel(axes, name, shapes)
    for axes in list(figure.axes)[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(
        f"{results.machine['name']}: forward and backward (models: a step), with the interquartile range", fontsize=11
    )
    return figure


def _panel(axes: Any, name: str, shapes: dict[str, list[Record]]) -> None:
    names = list(dict.fromkeys(_label(r) for records in shapes.values() for r in records))
    width = 0.85 / len(names)
    for i, candidate in enumerate(names):
        found = [(s, r) for s, records in enumerate(shapes.values()) for r in records if _label(r) == candidate]
        at = [s + (i - (len(names) - 1) / 2) * width for s, _ in found]
        heights = [r.median_us / 1e3 for _, r in found]
        low = [h - r.quartiles_us[0] / 1e3 for h, (_, r) in zip(heights, found, strict=True)]
        high = [r.quartiles_us[1] / 1e3 - h for h, (_, r) in zip(heights, found, strict=True)]
        ours = found[0][1].ours
        colour = COLOURS[0] if ours else COLOURS[1 + (i - 1) % (len(COLOURS) - 1)]
        axes.bar(at, heights, width, yerr=[low, high], color=colour, label=candidate, error_kw={"elinewidth": 0.8})
    for s, records in enumerate(shapes.values()):
        if records[0].kind == "op":
            bound = records[0].lower_bound_us / 1e3
            axes.plot(
                [s - 0.45, s + 0.45], [bound, bound], color="black", linewidth=1.2, label="limit" if s == 0 else None
            )
    axes.set_xticks(range(len(shapes)), [_wrapped(shape) for shape in shapes], fontsize=7)
    axes.set_ylabel("ms", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(name, fontsize=10)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)  # room for the legend
    axes.grid(axis="y", alpha=0.25)
    axes.legend(fontsize=7, ncols=4, loc="upper center")


def _label(record: Record) -> str:
    return f"fastlm {record.candidate}" if record.ours else record.candidate


def _wrapped(shape: str) -> str:
    """Returns the shape with each `name=value` on its own line."""
    words = shape.split(" ")
    return " ".join(w for w in words if "=" not in w) + "".join(f"\n{w}" for w in words if "=" in w)


def _shapes(records: Sequence[Record], most: int = 6) -> dict[str, list[Record]]:
    """Returns the timed records of the first `most` shapes: fastlm's fastest backend, then the peers."""
    shapes: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "timed" and record.pass_ in ("both", "step"):
            shapes.setdefault(record.shape, []).append(record)
    found = {}
    for shape, group in list(shapes.items())[:most]:
        ours = best(group)
        found[shape] = ([ours] if ours else []) + [r for r in group if not r.ours]
    return found


def _ops(results: Results) -> dict[str, list[Record]]:
    return grouped(r for r in results.records if r.kind == "op")


def _ours(records: Sequence[Record]) -> list[Record]:
    keys = dict.fromkeys((r.shape, r.pass_) for r in records)
    found = [best([r for r in records if (r.shape, r.pass_) == key]) for key in keys]
    return [r for r in found if r is not None]
