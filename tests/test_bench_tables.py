"""The generated tables of README.md and docs/performance.md."""

import json

import pytest
from bench_support import eager, record, result

import bench.__main__ as command
from bench import tables


def test_tables_of_the_docs_are_those_of_the_committed_results():
    drifted = tables.rewrite(check=True)
    assert not drifted, f"python -m bench tables rewrites {', '.join(map(str, drifted))}"


def test_every_block_stands_in_a_file_once():
    found = [
        name
        for path in tables.FILES
        for _, name, _ in tables.BLOCK.findall(path.read_text("utf-8"))
    ]
    assert sorted(found) == sorted(tables.blocks([]))


def test_a_changed_figure_is_found_and_mended(monkeypatch, tmp_path, capsys):
    right = tables.FILES[0].read_text("utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(right.replace("µs |", "ns |", 1), "utf-8")
    monkeypatch.setattr(tables, "FILES", [copy])
    assert command.main(["tables", "--check"]) == 1
    assert f"{copy} is not what the results say" in capsys.readouterr().out
    assert copy.read_text("utf-8") != right
    assert command.main(["tables"]) == 0
    assert copy.read_text("utf-8") == right
    assert command.main(["tables", "--check"]) == 0


def test_of_each_op_the_newest_run_counts(tmp_path):
    runs = {
        "a": record([eager(2.0), result("quadratic", [1.0, 1.0])]) | {"date": "2026-01-02"},
        "b": record([eager(3.0)]) | {"date": "2026-01-03"},
        "c": record([eager(4.0), eager(5.0, case="gone")]) | {"date": "2026-01-01"},
    }
    for name, run in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(run))
    records = tables.stored(tmp_path)
    assert [record["run"] for record in records] == ["c", "a", "b"]
    rows = tables.newest(records)
    assert set(rows) == {("center", "small", "train"), ("quadratic", "small", "train")}
    assert rows["center", "small", "train"].ratios["eager"] == 3


def test_every_run_of_the_family_has_a_line():
    quadratic = [
        result("quadratic", [1.0, 1.0], case=case, others={"einsum": [seconds]})
        for case, seconds in (("one", 8.0), ("two", 2.0))
    ]
    both = record([*quadratic, eager(3.0)]) | {"run": "b", "cpu": "Intel(R) Xeon(R) Processor, A"}
    others = record([eager(3.0)]) | {"run": "a"}
    line = tables.runs([others, both]).splitlines()[2:]
    assert line == ["| b | Intel Xeon | 4.00x, two 2.00x | - | - | - |"]


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("2; 20^2 -> 10", "2; 20² → 10"),
        ("128x262144*, dim -1", "128×262144*, dim -1"),
        ("4x8x128, all", "4×8×128, all"),
        ("3.15 us", "3.15 µs"),
    ],
)
def test_signs(plain, shown):
    assert tables.pretty(plain) == shown


def test_ratios_have_no_more_digits_than_they_mean():
    assert [tables.times(value) for value in (0.971, 9.994, 87.2, None)] == [
        "0.97x",
        "9.99x",
        "87x",
        "-",
    ]


def test_a_block_that_there_is_not_is_an_error():
    text = "<!-- generated: cubic -->\nx\n<!-- end of generated -->"
    with pytest.raises(KeyError):
        tables.generated(text, [])
