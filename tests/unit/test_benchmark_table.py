"""The benchmarks' table: what it shows, and when a run counts as worse than the committed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.harness import Row, row
from benchmarks.table import Run, compare, read, render, write

CREATE = row(
    "create",
    "32 in flight",
    "throughput",
    "1/s",
    [(900.0, 1000.0), (950.0, 1000.0), (800.0, 1000.0)],
    against="bare gRPC echo",
    higher_is_better=True,
    goal=0.9,
    note="client: 0.71 of a core",
)
MEMORY = replace(CREATE, measure="memory", unit="MB", ratio=1.5, higher_is_better=False, goal=1.5, note="")


def run(*rows: Row) -> Run:
    return Run(machine={"cpus": "2"}, benchmarks={"create": rows})


def shown(*rows: Row) -> list[str]:
    return render(run(*rows)).splitlines()


def worse(before: Row, after: Row) -> bool:
    """Whether a comparison of two runs fails."""
    return any(finding.worse for finding in compare(run(before), run(after), ["create"]))


# Rendering


def test_a_row_shows_medians_ratio_with_its_extremes_goal_and_verdict() -> None:
    headings, _, line, *_ = shown(CREATE)
    assert " ".join(headings.split()) == "benchmark case measure ours baseline which is ratio (low-high) goal"
    assert line.split("  ")[0] == "create"
    assert " ".join(line.split()) == (
        "create 32 in flight throughput, 1/s [1] 900 1,000 bare gRPC echo 0.90 (0.80-0.95) >= 0.9 reached"
    )


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (CREATE, ">= 0.9  reached"),
        (replace(CREATE, ratio=0.89), ">= 0.9  not reached"),
        (MEMORY, "<= 1.5  reached"),
        (replace(MEMORY, ratio=1.51), "<= 1.5  not reached"),
        (replace(CREATE, void="the client was slow"), ">= 0.9  void"),
        (replace(CREATE, goal=None), "(0.80-0.95)"),
    ],
)
def test_verdicts(line: Row, verdict: str) -> None:
    assert shown(line)[2].endswith(verdict)


def test_columns_line_up_within_160_characters() -> None:
    long = replace(
        CREATE,
        benchmark="a benchmark of many words",
        case="a case that takes many more words to say than fit into one line of the table",
        measure="a figure that is hard to name",
        ours=1_234_567.0,
        baseline_name="something else that is long to name",
        ratio=1234.5,
        low=1000.0,
        high=2000.0,
    )
    lines = shown(CREATE, long)
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 160
    place = table[0].index("measure")
    assert all(line[place - 2 : place] == "  " for line in table if set(line) != {"-"})
    text = " ".join(" ".join(table).split())
    for word in (*long.case.split(), *long.baseline_name.split(), "1,234,567", "1,234"):
        assert word in text


def test_what_stands_above_already_is_not_said_again() -> None:
    _, _, first, second, third, *_ = shown(CREATE, MEMORY, replace(CREATE, case="128 in flight"))
    assert "create" in first
    assert "32 in flight" in first
    assert not second[: first.index("throughput")].strip()
    assert third.split()[:3] == ["128", "in", "flight"]


def test_notes_are_footnotes_and_one_that_comes_twice_has_one_number() -> None:
    lines = shown(CREATE, replace(CREATE, case="128 in flight"), replace(MEMORY, void="out of memory"))
    assert "[1]" in lines[2]
    assert "[1]" in lines[3]
    assert "[2]" in lines[4]
    assert "[1] client: 0.71 of a core" in lines
    assert "[2] void: out of memory" in lines


def test_the_end_sums_up_goals_and_names_the_machine() -> None:
    lines = shown(CREATE, replace(CREATE, ratio=0.5), replace(MEMORY, goal=None), replace(MEMORY, void="busy"))
    assert lines[-2:] == ["1 of 2 goals reached; 1 rows void", "cpus 2"]


def test_a_run_comes_back_from_its_file(tmp_path: Path) -> None:
    written = Run(machine={"cpus": "2"}, benchmarks={"create": [CREATE, MEMORY], "reads": []})
    write(tmp_path / "run.json", written)
    assert read(tmp_path / "run.json") == written


# Comparing


@pytest.mark.parametrize("line", [CREATE, MEMORY])
@pytest.mark.parametrize(("loss", "fails"), [(0.26, True), (0.24, False), (-0.26, False), (-0.9, False)])
def test_more_than_a_quarter_worse_fails_in_both_directions(line: Row, loss: float, fails: bool) -> None:
    change = 1 - loss if line.higher_is_better else 1 + loss
    assert worse(line, replace(line, ratio=line.ratio * change)) is fails


def test_what_was_nothing_must_stay_nothing() -> None:
    before = replace(MEMORY, ratio=0.0)
    assert not worse(before, before)
    assert worse(before, replace(before, ratio=0.02))


def test_absolute_figures_are_not_compared() -> None:
    assert not worse(CREATE, replace(CREATE, ours=CREATE.ours / 10, baseline=CREATE.baseline / 10))


def test_a_row_that_is_gone_fails_and_is_named() -> None:
    (finding,) = compare(run(CREATE, MEMORY), run(CREATE), ["create"])
    assert finding.worse
    assert finding.key == "create / 32 in flight / memory"


def test_rows_of_a_benchmark_that_did_not_run_are_gone_unless_it_was_not_asked_for() -> None:
    nothing = Run(machine={}, benchmarks={})
    assert [finding.worse for finding in compare(run(CREATE), nothing, ["create", "reads"])] == [True]
    assert compare(run(CREATE), nothing, ["reads"]) == []


@pytest.mark.parametrize("before", [CREATE, replace(CREATE, void="busy")])
def test_a_void_row_is_told_and_not_compared(before: Row) -> None:
    after = replace(CREATE, ratio=0.01, void="" if before.void else "busy")
    (finding,) = compare(run(before), run(after), ["create"])
    assert not finding.worse
    assert "void: busy" in finding.text


def test_a_new_row_is_told_and_does_not_fail() -> None:
    (finding,) = compare(run(CREATE), run(CREATE, MEMORY), ["create"])
    assert not finding.worse
    assert finding.key == MEMORY.key


# The command


@pytest.fixture
def files(tmp_path: Path) -> Sequence[str]:
    """A committed run and one that is worse by more than is allowed."""
    paths = [tmp_path / "committed.json", tmp_path / "measured.json"]
    for path, ratio in zip(paths, (0.9, 0.6), strict=True):
        write(path, run(replace(CREATE, ratio=ratio)))
    return [str(path) for path in paths]


def test_two_files_are_compared_without_running(files: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    committed, measured = files
    assert command.main(["--from", measured, "--compare", committed]) == 1
    assert "create / 32 in flight / throughput: ratio 0.60, was 0.90: 33% worse" in capsys.readouterr().err
    assert command.main(["--from", committed, "--compare", measured]) == 0


def test_a_file_that_holds_no_run_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "missing.json"):
        with pytest.raises(SystemExit) as ended:
            command.main(["--compare", str(tmp_path / name)])
        assert ended.value.code == 2
        assert f"{name} holds no run" in capsys.readouterr().err


def test_a_benchmark_that_cannot_be_imported_is_told_and_the_others_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Works:
        @staticmethod
        def run(options: object) -> list[Row]:
            return [CREATE]

    class Breaks:
        @staticmethod
        def run(options: object) -> list[Row]:
            raise RuntimeError("no such luck")

    def imported(name: str) -> object:
        if name == "benchmarks.packing":
            raise ModuleNotFoundError("No module named 'ortools'")
        return Breaks if name == "benchmarks.reads" else Works

    monkeypatch.setattr(command, "import_module", imported)
    assert command.main(["--only", "packing", "reads", "create"]) == 1
    out, err = capsys.readouterr()
    assert "packing: did not run: No module named 'ortools'" in err
    assert "no such luck" in err
    assert "create" in out
    assert command.main(["--only", "create"]) == 0
