"""Runs the full-size comparisons with diffusers, and writes their table.

    python -m experiments.full_size_table [--only=1.4] [--resume]

Each test of tests/parity/test_full_size.py runs in its own process, so that its peak memory is its
own. Each test adds its figures to docs/full_size_parity.json, and docs/full_size_parity.md is made
from that file alone. Other rows stay as they are.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from absl import app, flags

from experiments.benchmarks.measuring import GIB, describe_machine

ROOT = Path(__file__).parents[1]
TESTS = "tests/parity/test_full_size.py"
RESULTS = ROOT / "docs" / "full_size_parity.json"
TABLE = RESULTS.with_suffix(".md")
LIBRARIES = ("jax", "flax", "torch", "diffusers", "transformers")

Row = dict[str, Any]

_HEADER = (
    "family",
    "network",
    "compared",
    "largest difference",
    "bound",
    "ours, s",
    "reference, s",
    "peak memory, GiB",
    "cores used by others",
)
_TEXT = """\
# Parity in full size

The networks of Stable Diffusion in their published sizes, compared with diffusers and transformers,
with the same random weights, in float32 on a CPU. `python -m experiments.full_size_table` measures
[full_size_parity.json](full_size_parity.json) by [{tests}](../{tests}),
and makes this page from it.

{table}

Other models have the same networks: 1.5 has those of 1.4. 2.0 and the base models of 2.0 and 2.1,
which draw images of 512 x 512, have those of 2.1.

A difference is the largest of any element, in standard deviations of the reference. Differences of
attention maps, which are summed over heads, are absolute, and the largest of all recorded layers.
Seconds are those of a second call, in which both sides keep the attention maps. Peak memory is that
of the process, which runs the reference before ours. The last column says how many cores other
programs used meanwhile; above about 0.2, the seconds of both sides are too high.

Measured on {machines}.
"""


def collect() -> list[str]:
    """Lists the names of the tests, such as "test_x[1.4]", family by family."""
    run = _pytest("--collect-only", "-q", TESTS)
    found = re.findall(rf"^{re.escape(TESTS)}::(\S+)$", run.stdout, re.MULTILINE)
    if run.returncode or not found:
        raise RuntimeError(f"no tests were collected from {TESTS}:\n{run.stdout}{run.stderr}")
    families = list(dict.fromkeys(map(family_of, found)))
    return sorted(found, key=lambda name: families.index(family_of(name)))


def family_of(name: str) -> str:
    """Returns the family in the name of a test: "1.4" in "test_x[1.4-64x64]"."""
    return re.search(r"\[([^]-]+)", name)[1]


def measure(test: str) -> Row:
    """Runs a test in its own process.

    Args:
        test: its node id, "file.py::test_x[1.4]".

    Returns:
        What it recorded, the machine, and the cores that other programs used meanwhile.

    Raises:
        RuntimeError: the test did not pass; its output is part of the message. An exit status of -9
            means that the process was killed, for example because memory ran out.
    """
    start, busy, own = time.monotonic(), _busy_seconds(), _seconds_of_children()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        temporary = Path(folder, "tests")
        # The default family of reports has no properties of a single test.
        run = _pytest(
            test, f"--junitxml={report}", "-o", "junit_family=xunit1", f"--basetemp={temporary}"
        )
        if run.returncode:
            status = f"exit status {run.returncode}"
            raise RuntimeError(f"{test} did not pass, {status}:\n{run.stdout}{run.stderr}")
        row = read_report(report)
    others = (_busy_seconds() - busy - _seconds_of_children() + own) / (time.monotonic() - start)
    machine = ", ".join(describe_machine(*LIBRARIES))
    return row | {"machine": machine, "others": max(0.0, round(others, 2))}


def read_report(path: Path) -> Row:
    """Reads the properties that a test recorded from a JUnit report with one test."""
    (case,) = ElementTree.parse(path).getroot().iter("testcase")
    row: Row = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    row["differences"] = json.loads(row["differences"])
    for name in ("bound", "seconds", "seconds_of_reference"):
        row[name] = float(row[name])
    row["peak_memory"] = int(row["peak_memory"])
    return row


def render(rows: Mapping[str, Row]) -> str:
    """Formats measured rows as a Markdown page."""
    lines = [_HEADER, ["---"] * len(_HEADER), *map(_cells, rows.values())]
    machines = dict.fromkeys(row["machine"] for row in rows.values())
    return _TEXT.format(
        tests=TESTS,
        table="\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        machines="; and on ".join(machines),
    )


def _cells(row: Row) -> Sequence[str]:
    return (
        row["family"],
        row["config"],
        "<br>".join(row["differences"]),
        "<br>".join(f"{value:.1e}" for value in row["differences"].values()),
        f"{row['bound']:.0e}",
        f"{row['seconds']:.1f}",
        f"{row['seconds_of_reference']:.1f}",
        f"{row['peak_memory'] / GIB:.1f}",
        f"{row['others']:.2f}",
    )


def _busy_seconds() -> float:
    """Returns the seconds of all cores that any program used since the machine started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-m", "slow", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _read_results() -> dict[str, Row]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def update(only: str | None, resume: bool) -> None:
    """Measures, and writes the results and the table after every test.

    Args:
        only: part of the names of tests; None is all.
        resume: whether to skip tests whose results exist.

    Raises:
        ValueError: no test has such a name.
    """
    tests, rows = collect(), _read_results()
    chosen = [test for test in tests if only is None or only in test]
    if not chosen:
        raise ValueError(f"--only={only} is not part of the name of any test: {', '.join(tests)}")
    for test in chosen:
        if resume and test in rows:
            continue
        print(f"measuring {test}", file=sys.stderr)
        rows[test] = measure(f"{TESTS}::{test}")
        rows = {test: rows[test] for test in tests if test in rows}
        _write(RESULTS, json.dumps(rows, indent=2) + "\n")
        _write(TABLE, render(rows))
    _write(TABLE, render(rows))  # also where nothing was left to measure


def main(_) -> None:
    """Measures what the flags choose; a stopped run keeps what it has measured."""
    update(flags.FLAGS.only, flags.FLAGS.resume)


if __name__ == "__main__":
    flags.DEFINE_string("only", None, "Part of the names of tests, such as 1.4; by default all.")
    flags.DEFINE_bool("resume", False, "Measure only tests without results.")
    app.run(main)
