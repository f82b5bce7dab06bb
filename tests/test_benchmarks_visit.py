"""A visit continues after stages that fail, hang or cannot start, and always leaves a summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import visit as module
from benchmarks.visit import ROOT, Stage, visit

SLEEP = "time.sleep(600)"


def python(name: str, code: str, share: float = 1.0) -> Stage:
    return Stage(name, [sys.executable, "-c", code], share)


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.3)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_failing_stage_is_reported_and_the_next_one_runs(tmp_path):
    stages = [
        python("build", "print('no compiler'); raise SystemExit(3)"),
        Stage("tool", ["/nonexistent/tool"], 1.0),
        python("tests", "print('5 passed')"),
    ]
    assert visit(tmp_path, 1.0, stages) == 1
    page = (tmp_path / "summary.md").read_text()
    assert "| build | failed (3) |" in page and "no compiler" in page
    assert "| tool | failed (it could not be started) |" in page and "No such file" in page
    assert "| tests | ok |" in page and "tests: 5 passed" in page


def test_all_well_is_0(tmp_path):
    assert visit(tmp_path / "new", 1.0, [python("tests", "print('5 passed')")]) == 0


def test_a_hanging_stage_and_its_children_are_ended_in_time(tmp_path):
    child = tmp_path / "child"
    hang = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"p = subprocess.Popen([sys.executable, '-c', 'import time; {SLEEP}'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid)); print('started', flush=True); {SLEEP}"
    )
    started = time.monotonic()
    assert visit(tmp_path, 0.06, [python("ops", hang), python("models", "print('here')")]) == 1
    assert time.monotonic() - started < 20
    page = (tmp_path / "summary.md").read_text()
    assert "| ops | out of time |" in page and "started" in page
    assert "| models | ok |" in page
    state = Path(f"/proc/{child.read_text()}/stat")
    assert not state.exists() or state.read_text().split(")")[1].split()[0] == "Z"


def test_without_time_nothing_is_started(tmp_path):
    assert visit(tmp_path, 0.0, [python("ops", "open('ran', 'w')")]) == 1
    assert "| ops | not started | 0 |" in (tmp_path / "summary.md").read_text()
    assert not (ROOT / "ran").exists()


def test_the_page_is_there_after_each_stage(tmp_path):
    code = f"import pathlib; print(pathlib.Path({str(tmp_path / 'summary.md')!r}).read_text())"
    visit(tmp_path, 1.0, [python("build", "pass"), python("look", code), python("rest", "pass")])
    seen = (tmp_path / "look.log").read_text()
    assert "| build | ok |" in seen and "| look | not yet |" in seen


def test_a_visit_that_is_ended_ends_its_stage(tmp_path):
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from pathlib import Path; from benchmarks.visit import Stage, visit\n"
        f"sleep = 'import os, time; print(os.getpid(), flush=True); {SLEEP}'\n"
        f"visit(Path({str(tmp_path)!r}), 5.0, [Stage('hang', [sys.executable, '-c', sleep], 1)])"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    log = tmp_path / "hang.log"
    deadline = time.monotonic() + 20
    while (not log.exists() or len(log.read_text().splitlines()) < 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().splitlines()[-1]), 0)


def test_the_stages_need_no_network_and_know_their_time(tmp_path):
    build, *_, ops, models = module.stages(tmp_path)
    assert "--no-index" in build.command and "--no-build-isolation" in build.command
    assert "{minutes}" in ops.command and "{minutes}" in models.command


def test_predicted_times_are_beside_measured_ones_and_called_predicted(tmp_path):
    from test_benchmarks import record, results
    from test_benchmarks_predict import predicted_file

    results(record()).write(tmp_path / "results" / "a.json")
    assert visit(tmp_path, 1.0, [python("ops", "pass")]) == 0
    assert "predicted" not in (tmp_path / "summary.md").read_text()
    predicted = predicted_file(tmp_path / "made before.json")
    assert visit(tmp_path, 1.0, [python("ops", "pass")], predicted) == 0
    page = (tmp_path / "summary.md").read_text()
    assert "### a.json: predicted for an H100 SXM5, beside measured" in page
    assert "| layer_norm | 4 x 8 | both | triton | 12.0 | 6.0 | 0.50 |" in page


def test_it_imports_nothing_that_has_to_be_installed():
    code = (
        "import sys; import benchmarks.visit, benchmarks.__main__;"
        "print([m for m in ('torch', 'fastlm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
