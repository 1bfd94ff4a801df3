"""The table of the full-size comparisons follows from the measured results alone."""

import json
import os

import pytest

from experiments import full_size_table

ROW = {
    "family": "Stable Diffusion 1.4",
    "config": "UNet, 859.5 M parameters, 64 x 96 latents",
    "differences": {"predicted noise": 1.26e-05, "cross-attention of 5 layers": 4e-06},
    "bound": 1e-4,
    "seconds": 6.04,
    "seconds_of_reference": 12.36,
    "peak_memory": 5 * 2**30 + 2**29,
    "machine": "A processor, 2 cores, Python 3.11.7",
    "others": 0.1,
}
RECORDING = """
import pytest

@pytest.mark.slow
@pytest.mark.parametrize("family", ["1.4"])
def test_x(family, record_property):
    for name, value in {row!r}.items():
        record_property(name, value)
    assert {passes}, "the figures are too large"
"""


def test_a_row_states_each_difference_and_what_was_compared():
    lines = full_size_table.render({"test_x[1.4]": ROW}).splitlines()
    (row,) = [line for line in lines if "859.5 M" in line]
    assert row == (
        "| Stable Diffusion 1.4 | UNet, 859.5 M parameters, 64 x 96 latents | predicted noise<br>"
        "cross-attention of 5 layers | 1.3e-05<br>4.0e-06 | 1e-04 | 6.0 | 12.4 | 5.5 | 0.10 |"
    )
    assert lines[lines.index(row) - 2].count("|") == row.count("|")


def test_every_machine_is_named_once():
    rows = [ROW, ROW, ROW | {"machine": "Another"}]
    text = full_size_table.render(dict(enumerate(rows)))
    assert "Measured on A processor, 2 cores, Python 3.11.7; and on Another." in text


def test_the_published_table_follows_from_the_published_results():
    rows = json.loads(full_size_table.RESULTS.read_text(encoding="utf-8"))
    assert full_size_table.TABLE.read_text(encoding="utf-8") == full_size_table.render(rows)
    assert all(max(row["differences"].values()) < row["bound"] for row in rows.values())


def write_test(folder, passes):
    recorded = {name: ROW[name] for name in ROW if name not in ("machine", "others")}
    recorded["differences"] = json.dumps(recorded["differences"])
    path = folder / "test_made.py"
    path.write_text(RECORDING.format(row=recorded, passes=passes))
    return f"{path}::test_x[1.4]"


def test_the_results_of_a_test_come_from_its_own_process(tmp_path):
    row = full_size_table.measure(write_test(tmp_path, passes=True))
    assert {name: row[name] for name in ROW.keys() - {"machine", "others"}} == {
        name: ROW[name] for name in ROW.keys() - {"machine", "others"}
    }
    assert "cores, Python" in row["machine"] and 0 <= row["others"] <= 1.1 * os.cpu_count()


def test_a_test_that_fails_gives_no_row(tmp_path):
    with pytest.raises(
        RuntimeError, match="did not pass, exit status 1:(.|\n)*the figures are too large"
    ):
        full_size_table.measure(write_test(tmp_path, passes=False))


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Stores results of two tests and a deleted one; returns the list of tests measured later."""
    names = []

    def measure(test):
        names.append(test.removeprefix(f"{full_size_table.TESTS}::"))
        return ROW | {"seconds": 99.0}

    monkeypatch.setattr(full_size_table, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(full_size_table, "TABLE", tmp_path / "table.md")
    monkeypatch.setattr(full_size_table, "collect", lambda: ["a[1.4]", "b[1.4-8x8]", "a[XL]"])
    monkeypatch.setattr(full_size_table, "measure", measure)
    rows = {"a[XL]": ROW, "gone[1.4]": ROW, "a[1.4]": ROW}
    full_size_table.RESULTS.write_text(json.dumps(rows))
    return names


def seconds():
    rows = json.loads(full_size_table.RESULTS.read_text())
    return {name: row["seconds"] for name, row in rows.items()}


def test_measuring_one_family_keeps_the_rows_of_the_others(measured):
    full_size_table.update("1.4", resume=False)
    assert measured == ["a[1.4]", "b[1.4-8x8]"]
    assert list(seconds().items()) == [("a[1.4]", 99.0), ("b[1.4-8x8]", 99.0), ("a[XL]", 6.04)]
    table = full_size_table.TABLE.read_text()
    assert table.count("| 99.0 |") == 2 and table.count("| 6.0 |") == 1


def test_resume_measures_only_tests_without_results(measured):
    full_size_table.update(None, resume=True)
    assert measured == ["b[1.4-8x8]"]
    assert seconds() == {"a[1.4]": 6.04, "b[1.4-8x8]": 99.0, "a[XL]": 6.04}


def test_an_unknown_name_is_refused_with_the_names_that_exist(measured):
    with pytest.raises(ValueError, match=r"--only=2.1 is not .*: a\[1.4\], b\[1.4-8x8\], a"):
        full_size_table.update("2.1", resume=False)
    assert not measured
