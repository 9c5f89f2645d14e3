"""CI fails on a skipped test that is not named, with its reason, in the list of allowed skips."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
TOOL: Final = ROOT / "tools/check_skips.py"
TEST: Final = "tests.wire.test_grpc_js.test_lists"
REASON: Final = "npm: no <registry> here"
REPORT: Final = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" tests="3">
<testcase classname="tests.wire.test_grpc_js" name="test_lists" time="0.1">
  <skipped type="pytest.skip" message="npm: no &lt;registry&gt; here">file:1: because</skipped>
</testcase>
<testcase classname="tests.unit.test_slots" name="test_fits[1-2]" time="0.1"/>
<testcase classname="tests.unit.test_slots" name="test_fails" time="0.1"><failure message="no"/></testcase>
</testsuite></testsuites>
"""


def check(folder: Path, allowed: str, report: str = REPORT) -> tuple[int, str]:
    (folder / "report.xml").write_text(report)
    (folder / "allowed.txt").write_text(allowed)
    done = subprocess.run(
        [sys.executable, TOOL, folder / "report.xml", folder / "allowed.txt"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "allowed",
    [
        f"{TEST}: {REASON}\n",
        f"# what may be missing\n\n  {TEST}: {REASON}   # a laptop\ntests.other.test_x: y\n",
    ],
)
def test_a_named_skip_passes(tmp_path: Path, allowed: str) -> None:
    assert check(tmp_path, allowed) == (0, "")


@pytest.mark.parametrize(
    "allowed",
    [
        "",
        "# nothing\n",
        f"# {TEST}: {REASON}\n",
        f"{TEST}: npm is missing\n",
        f"{TEST}_more: {REASON}\n",
        f"tests.wire.test_grpc_js: {REASON}\n",
    ],
    ids=["empty", "comment", "commented-out", "another-reason", "another-test", "module-only"],
)
def test_an_unnamed_skip_fails_and_is_named(tmp_path: Path, allowed: str) -> None:
    code, said = check(tmp_path, allowed)
    assert code == 1
    assert f"{TEST}: {REASON}" in said
    assert "test_slots" not in said  # what passed or failed is not its affair


def test_a_report_without_skips_passes(tmp_path: Path) -> None:
    assert check(
        tmp_path, "", "<testsuites><testsuite><testcase classname='a' name='b'/></testsuite></testsuites>"
    ) == (0, "")


def test_what_pytest_itself_reports_is_understood(tmp_path: Path) -> None:
    """The whole way: skips by a mark, in a fixture, of a whole module; an expected failure counts, too."""
    (tmp_path / "test_skips.py").write_text(
        """
import pytest

@pytest.mark.skip(reason="marked")
def test_marked(): ...

@pytest.fixture
def thing():
    pytest.skip("no thing: here")

@pytest.mark.parametrize("size", [1])
def test_fixture(thing, size): ...

@pytest.mark.xfail(reason="known", strict=True)
def test_expected(): assert False
"""
    )
    (tmp_path / "test_module.py").write_text(
        "import pytest\npytest.importorskip('no_such_module', reason='not here')\n"
    )
    report = tmp_path / "report.xml"
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit2",
    ]
    subprocess.run(run, cwd=tmp_path, capture_output=True, timeout=60, check=True)
    code, said = check(tmp_path, "", report.read_text())
    named = sorted(line.partition("allowed.txt: ")[2] for line in said.splitlines())
    assert code == 1
    assert named == [
        "test_module: not here",
        "test_skips.test_expected: known",
        "test_skips.test_fixture[1]: no thing: here",
        "test_skips.test_marked: marked",
    ]
    assert check(tmp_path, "\n".join(named), report.read_text()) == (0, "")


def test_the_list_that_is_used_is_well_formed() -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "tests/allowed-skips.txt").read_text().splitlines()]
    named = [line.split(": ", 1) for line in lines if line]
    assert all(len(each) == 2 and each[0].startswith("tests.") and each[1] for each in named)
    assert len({test for test, _ in named}) == len(named)
