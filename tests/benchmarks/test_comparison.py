"""The comparison with other packages: the pages have what `benchmarks/peers.py` prints."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.once

PROGRAM = ROOT / "benchmarks" / "peers.py"
PAGE = ROOT / "docs" / "comparison.md"
README = ROOT / "README.md"
HEALTHCHECKS = "healthchecks.io"


def rows_of(text: str) -> list[list[str]]:
    """Return the rows of a table in Markdown, the first with its headings."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in rows if set(row) != {"---"}]


def table(page: Path) -> list[list[str]]:
    """Return the rows of the comparison on a page."""
    marked = page.read_text("utf-8").split("<!-- peers.py -->\n")[1].split("<!-- end -->")[0]
    return rows_of(marked)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the program as a module."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    spec = importlib.util.spec_from_file_location("peers", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peers", module)  # where its dataclasses look
    spec.loader.exec_module(module)
    return module


class TestPages:
    """The table in the documentation, and the short one in the README."""

    def test_documentation_has_each_situation_of_the_program(self, peers: ModuleType) -> None:
        """The rows and their order are those of the program, each with all columns."""
        headings, *rows = table(PAGE)
        assert [row[:2] for row in rows] == [[s.text, str(s.due)] for s in peers.SITUATIONS]
        assert {len(row) for row in rows} == {len(headings)}

    def test_both_pages_name_the_peers_of_the_program(self, peers: ModuleType) -> None:
        """The headings begin with the names that the program prints; versions may follow."""
        names = [peers.column(peer).split(" ")[0] for peer in peers.PEERS]
        for page, others in ((PAGE, [HEALTHCHECKS]), (README, [])):
            headings = table(page)[0]
            assert [heading.split(" ")[0] for heading in headings[2:]] == [*names, *others]

    def test_readme_has_some_rows_of_the_documentation(self, peers: ModuleType) -> None:
        """The README's table is what `--update` would write there with the page's own rows."""
        assert peers.for_readme(table(PAGE)) == table(README)

    def test_readme_says_whether_another_package_is_better_in_a_row(self) -> None:
        """If this package does not report a problem that another one does, a sentence says so."""
        headings, *rows = table(README)
        ours = headings.index("apscheduler-telemetry")
        better = [row for row in rows if row[ours] == "nothing" and "→" in row[-1]]
        sentence = f"{headings[-1].split()[0]} is better in one row"
        assert len(better) == README.read_text("utf-8").count(sentence)

    def test_update_changes_the_table_only(self, peers: ModuleType, tmp_path: Path) -> None:
        """`update` writes the same page if the table is the same."""
        copy = tmp_path / "page.md"
        for page in (PAGE, README):
            text = page.read_text("utf-8")
            copy.write_text(text, "utf-8")
            peers.update(copy, [["empty"]])
            assert copy.read_text("utf-8") != text
            peers.update(copy, table(page))
            assert copy.read_text("utf-8") == text


@pytest.mark.slow
class TestProgram:
    """A run of the program."""

    def test_counts_are_those_of_the_page(self) -> None:
        """A new run prints the page's counts of this package and of a listener."""
        done = subprocess.run(
            [
                *(sys.executable, PROGRAM, "--counts-only"),
                *("--peers", "apscheduler-telemetry", "listener"),
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        printed = [row[:4] for row in rows_of(done.stdout)[1:]]
        assert printed == [
            [*row[:2], *(cell.partition("→")[0].strip() or "nothing" for cell in row[2:4])]
            for row in table(PAGE)[1:]
        ]
