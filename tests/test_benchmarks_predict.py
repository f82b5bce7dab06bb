"""Predicted times: decoding, arithmetic, invariants of the model, recorded launches, and files. Nothing is timed."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.predict import build, report, rows, values
from benchmarks.predict.chip import Chip, changed, resident
from benchmarks.predict.instructions import Instruction, Kernel, load
from benchmarks.predict.launch import Launch
from benchmarks.predict.predict import predict
from benchmarks.predict.recording import recording_cuda
from benchmarks.predict.trace import Instances, bank_clocks
from benchmarks.predict.walk import Walk
from benchmarks.results import Results, ResultsError

ROOT = Path(__file__).parent.parent
CUBINS = Path(__file__).parent / "recorded" / "cubins"  # recorded by tests/recorded_cubins.py
RECORDED = json.loads((CUBINS / "launches.json").read_text())


def missing(*programs: str) -> list[str]:
    found = []
    for program in programs:
        try:
            build.tool(program)
        except build.MissingTool:
            found.append(program)
    return found


needs_sass = pytest.mark.skipif(
    bool(missing("nvdisasm", "cuobjdump")), reason="nvdisasm and cuobjdump, which triton brings, decode the cubins"
)
needs_compiler = pytest.mark.skipif(bool(missing("g++")), reason="g++ compiles the simulation")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def recorded(name: str) -> tuple[Kernel, Launch]:
    facts = RECORDED[name]
    launch = Launch(tuple(facts["grid"]), tuple(facts["block"]), facts["dynamic"], bytes.fromhex(facts["parameters"]))
    return load(CUBINS / f"{name}.cubin")[facts["kernel"]], launch


def small(name: str) -> tuple[Kernel, Launch]:
    """Returns a recorded kernel and a launch of fewer CTAs."""
    kernel, launch = recorded(name)
    x, y, z = launch.grid
    return kernel, replace(launch, grid=(min(x, 600), y, min(z, 32)))


# Decoding -------------------------------------------------------------------------------------------------------------


@needs_sass
def test_known_instructions_are_decoded():
    kernel, _ = recorded("sum_partials_cuda")
    assert (len(kernel.code), kernel.registers, kernel.shared, kernel.parameters) == (216, 26, 5120, [(0, 40)])
    first, special, *_, guarded = kernel.code[:6]
    assert (first.op, first.operands, first.stall, first.yields, first.write, first.wait) == (
        "LDC", "R1, c[0x0][0x28]", 8, False, 7, 0,
    )  # fmt: skip
    assert (special.full, special.operands, special.write) == ("S2UR", "UR4, SR_CTAID.Y", 0)
    assert kernel.code[3].wait == 1  # for what S2UR writes
    assert (guarded.guard, guarded.full, guarded.operands) == ("@UP0", "ULDC.64", "UR6, c[0x0][0x220]")
    branch = next(i for i in kernel.code if i.op == "BRA")
    assert (branch.address, branch.guard, branch.target) == (0x170, "@P0", 0x4D0)


@needs_sass
def test_triton_s_parameters_and_resources_are_decoded():
    kernel, launch = recorded("attention_forward_triton")
    assert (kernel.registers, kernel.parameters_at) == (128, 0x210)
    assert kernel.parameters[:6] == [(0, 8), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4)]
    assert any(i.full == "HGMMA.64x128x16.F32.BF16" or i.op == "HGMMA" for i in kernel.code)
    assert resident(kernel, 128, launch.dynamic) == 4  # 128 registers of 512 threads


# Arithmetic -----------------------------------------------------------------------------------------------------------

WORDS = st.integers(0, values.WORD)


@given(WORDS, WORDS, WORDS, st.integers(0, 255))
def test_any_function_of_three_bits(a, b, c, table):
    expected = 0
    for bit in range(32):
        index = 4 * (a >> bit & 1) + 2 * (b >> bit & 1) + (c >> bit & 1)
        expected |= (table >> index & 1) << bit
    assert values.lut3(table, a, b, c) == expected
    if table in values.COMMON_LUTS:
        assert values.COMMON_LUTS[table](a, b, c) == expected


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.integers(0, 31), st.booleans(), st.booleans())
def test_shifts_of_arrays_are_those_of_integers(pairs, count, high, arithmetic):
    low, upper = (np.array(x, dtype=np.int64) for x in zip(*pairs, strict=True))
    left, right = values.funnel_left(low, upper, count, high), values.funnel_right(low, upper, count, high, arithmetic)
    for n, (a, c) in enumerate(pairs):
        assert int(left[n]) == values.funnel_left(a, c, count, high)
        assert int(right[n]) == values.funnel_right(a, c, count, high, arithmetic)
        whole = a | values.signed(c) << 32 if arithmetic else a | c << 32
        assert int(right[n]) == whole >> count >> (32 if high else 0) & values.WORD


@given(WORDS, WORDS, st.booleans())
def test_comparisons_have_a_sign(a, b, unsigned):
    x, y = (a, b) if unsigned else (values.signed(a), values.signed(b))
    assert values.compare("LT", a, b, unsigned) == (x < y)
    assert values.compare("GE", a, b, unsigned) == (x >= y)


def test_what_is_not_known_stays_so_unless_it_makes_no_difference():
    assert values.both(None, False) is False and values.both(None, True) is None
    assert values.truth(0x80, (None, False, True)) is False  # a & b & c
    assert values.truth(0x80, (None, True, True)) is None


def test_bank_conflicts():
    lanes = np.arange(32, dtype=np.int64)
    assert bank_clocks(4 * lanes, "4", None) == 1
    assert bank_clocks(128 * lanes, "4", None) == 32
    assert bank_clocks(8 * lanes, "4", None) == 2
    assert bank_clocks(0 * lanes, "4", None) == 1  # a broadcast
    assert bank_clocks(16 * lanes, "16", None) == 4


# Walks ----------------------------------------------------------------------------------------------------------------


def written(*lines: str) -> Kernel:
    """Returns a kernel of the given instructions, with the guard before each, at addresses 0x10 apart."""
    kernel = Kernel("written", registers=16)
    code = []
    for n, line in enumerate(lines):
        guard, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        full, _, operands = rest.partition(" ")
        target = int(operands.split()[-1], 16) if full in ("BRA", "BSSY") else -1
        code.append(Instruction(16 * n, guard, full.split(".")[0], full, operands, 1, False, 7, 7, 0, target))
    kernel.code = code
    return kernel


LOOP = (
    "S2R R0, SR_TID.X",
    "SHF.R.U32.HI R0, RZ, 0x5, R0",  # the warp's number
    "IADD3 R1, R0, 0x1, RZ",
    "IADD3 R1, R1, -0x1, RZ",  # 0x30
    "ISETP.NE.AND P0, PT, R1, RZ, PT",
    "@P0 BRA 0x30",
    "EXIT",
)


def test_each_warp_goes_its_own_way():
    trace = Walk(written(*LOOP), Launch((1, 1, 1), (128, 1, 1)), 0, Instances(), None).run()
    assert [len(w.positions) for w in trace.warps] == [3 + 3 * (n + 1) + 1 for n in range(4)]


def test_sectors_are_counted_once_per_cta():
    kernel = written(
        "S2R R0, SR_TID.X", "IMAD.SHL.U32 R2, R0, 0x4, RZ", "MOV R3, 0x1", "LDG.E R4, desc[UR4][R2.64]",
        "LDG.E R5, desc[UR4][R2.64+0x80]", "STG.E desc[UR4][R2.64], R4", "EXIT",
    )  # fmt: skip
    trace = Walk(kernel, Launch((1, 1, 1), (64, 1, 1)), 0, Instances(), None).run()
    assert (len(trace.read), len(trace.written)) == (12, 8)  # 384 and 256 bytes


def test_an_endless_loop_is_an_error():
    walk = Walk(written("BRA 0x0"), Launch((1, 1, 1), (32, 1, 1)), 0, Instances(), None, limit=1000)
    with pytest.raises(ValueError, match="does not end"):
        walk.run()


# The model ------------------------------------------------------------------------------------------------------------

NAMES = sorted(RECORDED)


@needs_sass
@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_the_same_launch_has_always_the_same_figure(name):
    kernel, launch = small(name)
    first = predict(kernel, launch)
    assert predict(kernel, launch).us == first.us
    assert predict(small(name)[0], launch).us == first.us  # of the cubin, loaded again
    assert 0 < first.us < 1e5


@needs_sass
@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_more_bytes_are_never_faster(name):
    kernel, launch = small(name)
    each = [predict(kernel, launch, hbm_bytes=n) for n in (1e6, 1e8, 1e9)]
    for fewer, more in itertools.pairwise(each):
        assert fewer.us <= more.us * (1 + fewer.spread + more.spread)
    assert each[0].us < each[-1].us >= 1e9 / Chip.hbm * 1e6  # nor is anything faster than HBM


@needs_sass
@needs_compiler
@pytest.mark.parametrize("pipe", ["fma", "alu", "xu", "agu"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_made_free_is_never_slower(name, pipe):
    """The bound is what the model itself prints: how CTAs happen to meet changes both times."""
    kernel, launch = small(name)
    usual, free = (predict(kernel, launch, chip, hbm_bytes=1e6) for chip in (Chip(), replace(Chip(), **{pipe: 0.01})))
    assert free.us <= usual.us * (1 + usual.spread + free.spread)
    assert free.resources[pipe] < 0.01


@needs_sass
@needs_compiler
def test_a_slow_pipe_sets_the_pace():
    kernel, launch = small("attention_forward_triton")
    usual, slow = (predict(kernel, launch, replace(Chip(), xu=clocks), hbm_bytes=1e6) for clocks in (8, 64))
    assert slow.us > 1.5 * usual.us
    assert (slow.busiest, round(slow.resources["xu"], 1)) == ("xu", 1.0)


@needs_sass
@needs_compiler
@pytest.mark.parametrize("name", ["attention_forward_triton", "layer_norm_forward_triton"])
def test_more_ctas_take_longer(name):
    kernel, launch = recorded(name)
    x, y, z = launch.grid
    times = [predict(kernel, replace(launch, grid=(x, y, n)), hbm_bytes=1e6).us for n in (z, 2 * z)]
    assert times[1] > 1.5 * times[0]


@needs_sass
def test_a_cta_that_does_not_fit_is_an_error():
    kernel, launch = recorded("attention_forward_triton")
    with pytest.raises(ValueError, match="no room for a CTA"):
        predict(kernel, replace(launch, dynamic=300_000))


def test_constants_can_be_changed_by_name():
    assert changed(["ghz=1.6", "ports=0"]) == replace(Chip(), ghz=1.6, ports=False)
    with pytest.raises(ValueError, match="a constant of the chip expected, got 'gzh'"):
        changed(["gzh=1.6"])


# Launches -------------------------------------------------------------------------------------------------------------

HOST = r"""
#include <cstddef>
struct Dim3 { unsigned x, y, z; };
extern "C" void __cudaRegisterFunction(void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*);
extern "C" int cudaLaunchKernel(const void*, Dim3, Dim3, void**, size_t, void*);
extern "C" void start(const char* name, unsigned ctas) {
  static const char host = 0;
  __cudaRegisterFunction(nullptr, &host, nullptr, name, 0, nullptr, nullptr, nullptr, nullptr, nullptr);
  char sums[40] = "abc";
  void* arguments[] = {sums};
  cudaLaunchKernel(&host, {ctas, 2, 1}, {1024, 1, 1}, arguments, 64, nullptr);
}
"""


@needs_sass
@needs_compiler
def test_launches_are_recorded(tmp_path):
    (tmp_path / "host.cpp").write_text(HOST)
    library = build.build_once(
        tmp_path / "host.so",
        ["g++", "-std=c++20", "-shared", "-fPIC", "-Wl,-Bsymbolic", str(tmp_path / "host.cpp"),
         str(build.HERE / "recording_runtime.cpp"), "-o", "{}"],
    )  # fmt: skip
    host = ctypes.CDLL(str(library))
    kernel, _ = recorded("sum_partials_cuda")
    with recording_cuda(host, {kernel.name: kernel}) as found:
        host.start(kernel.name.encode(), 7)
    (one,) = found
    assert (one.kernel, one.launch.grid, one.launch.block) == (kernel, (7, 2, 1), (1024, 1, 1))
    assert (one.launch.dynamic, one.launch.parameters) == (64, b"abc".ljust(40, b"\0"))
    with pytest.raises(RuntimeError, match="in no cubin"), recording_cuda(host, {}):
        host.start(kernel.name.encode(), 7)


@needs_sass
@needs_compiler
def test_the_command_predicts_what_triton_launches(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FASTLM_EMULATE")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "benchmarks", "predict", "--op", "layer_norm", "--backend", "triton"]
    command += ["--shape", "x 768", "--tokens", "2048", "--hot", "1", "--json", str(tmp_path / "new" / "p.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows.read(tmp_path / "new" / "p.json")
    keys = [("layer_norm", "2048 x 768", pass_, "triton") for pass_ in ("forward", "backward")]
    assert list(found) == keys and all(us > 0 for us in found.values())
    lines = [line for line in done.stdout.splitlines() if line.startswith("layer_norm")]
    assert len(lines) == 2 and all("predicted" in line for line in lines)


def test_the_command_needs_compiled_kernels_and_known_cases(capsys, monkeypatch):
    from benchmarks.__main__ import main

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["predict"]) == 2 and "unset it" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    assert main(["predict", "--op", "softmax"]) == 2 and "there are no cases of softmax" in capsys.readouterr().err
    assert main(["predict", "--shape", "7 x 7"]) == 2 and "no shape contains 7 x 7" in capsys.readouterr().err
    assert main(["predict", "--set", "gzh=1"]) == 2 and "a constant of the chip" in capsys.readouterr().err


# Files and tables -----------------------------------------------------------------------------------------------------


def predicted_file(path: Path) -> Path:
    row = {"op": "layer_norm", "shape": "4 x 8", "pass": "both", "backend": "triton", "predicted_us": 12.0}
    rows.write(path, rows.to_json([], Chip(), {"sha": "0", "date": None, "dirty": False}) | {"rows": [row]})
    return path


def test_predicted_and_measured_files_are_never_taken_for_each_other(tmp_path):
    path = predicted_file(tmp_path / "predicted.json")
    assert rows.read(path) == {("layer_norm", "4 x 8", "both", "triton"): 12.0}
    with pytest.raises(ResultsError):
        Results.read(path)
    path.write_text(path.read_text().replace('"predicted"', '"measured"'))
    with pytest.raises(rows.PredictedError, match="not a file of predicted times"):
        rows.read(path)
    path.write_text("{")
    with pytest.raises(rows.PredictedError, match="is not JSON"):
        rows.read(path)


def test_tables_call_predicted_what_is_predicted():
    key = ("layer_norm", "4 x 8", "both", "triton")
    text = report.changes({key: 10.0}, {key: 12.0, ("adamw", "x", "step", "cuda"): 1.0}, "HEAD~1")
    assert "HEAD~1, predicted us" in text and "this checkout, predicted us" in text
    assert "| 10.0 | 12.0 | +20.0% |" in text and "adamw" not in text


def test_predicted_beside_measured():
    from test_benchmarks import record, results

    key = ("layer_norm", "4 x 8", "both", "triton")
    measured = results(record(), record(candidate="liger", ours=False), record(shape="5 x 8"))
    text = report.beside_measured({key: 12.0}, measured)
    assert "predicted us" in text and "measured us" in text
    assert text.splitlines()[2:] == ["| layer_norm | 4 x 8 | both | triton | 12.0 | 6.0 | 0.50 |"]


def test_names_that_people_wrote():
    assert (
        rows.short_name("_ZN6fastlm36_GLOBAL__N__e2dbe_13_layer_norm_cu_7381d86a14forward_kernelILi1EE")
        == "forward_kernel"
    )
    assert rows.short_name("_forward") == "_forward"


def test_a_program_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="No such file"):
        build.output([shutil.which("ls"), str(tmp_path / "nothing")])
    with pytest.raises(build.MissingTool, match="no-such-tool is needed for predictions"):
        build.tool("no-such-tool")
