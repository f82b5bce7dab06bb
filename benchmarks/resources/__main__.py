"""python -m benchmarks.resources [STEM ...] [--arch 80 90 100] [--json]"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Iterator

from benchmarks import resources
from benchmarks.resources._compile import CHIPS, Chip, Usage, compile_for
from fastlm import backends
from fastlm.ops import SPECS

COLUMNS = ("kernel", "variant", "arch", "warps", "registers", "spills", "shared", "matrix")


def stems() -> list[str]:
    """Returns the stems of the files in kernels/ with launchers; for each, this folder has a file of the same name."""
    return sorted({spec.kernels for spec in SPECS.values() if "triton" in spec.limits})


def compiled(stem: str, chips: list[Chip]) -> Iterator[tuple[str, Usage]]:
    """Yields the kernels of one file on each chip, each with the first variant that launches it."""
    seen: set[str] = set()
    for variant, launch in importlib.import_module(f"benchmarks.resources.{stem}").cases():
        for chip in chips:
            new = {key: usage for key, usage in compile_for(chip, launch).items() if key not in seen}
            seen |= new.keys()
            for usage in new.values():
                yield variant, dataclasses.replace(usage, kernel=f"{stem}.{usage.kernel.lstrip('_')}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.resources", description=resources.__doc__.split("\n")[0]
    )
    parser.add_argument("stems", nargs="*", metavar="STEM", help=f"{', '.join(stems())} (default: all)")
    parser.add_argument("--arch", nargs="+", type=int, choices=[c.arch for c in CHIPS], help="default: all")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    arguments = parser.parse_args()
    if unknown := set(arguments.stems) - set(stems()):
        parser.error(f"STEM must be one of {', '.join(stems())}, got {', '.join(sorted(unknown))}")
    if backends.interpreted():
        parser.error("kernels cannot be compiled while TRITON_INTERPRET=1: unset it")
    chips = [c for c in CHIPS if arguments.arch is None or c.arch in arguments.arch]
    if not arguments.json:
        _print_row(COLUMNS)
    for stem in arguments.stems or stems():
        for variant, usage in compiled(stem, chips):
            row = {"variant": variant, **dataclasses.asdict(usage)}
            print(json.dumps(row), flush=True) if arguments.json else _print_row([row[c] for c in COLUMNS])


def _print_row(cells) -> None:
    print("{:32} {:28} {:>4} {:>5} {:>9} {:>6} {:>7}  {}".format(*cells), flush=True)


if __name__ == "__main__":
    main()
