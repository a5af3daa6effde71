"""The layers of the package: imports only go down, and there are no cycles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import apscheduler_telemetry

PACKAGE = Path(apscheduler_telemetry.__file__).parent
LAYERS: Sequence[frozenset[str]] = (
    # Import nothing of the package. Packages that are named here have an empty `__init__`.
    frozenset({"_version", "environment_variables", "errors"}),
    frozenset({"adapters", "adapters.apscheduler3", "core", "export", "export.multiprocess"}),
    frozenset({"core.interruptions"}),
    # Plain data, the metrics state, and who follows single runs.
    frozenset(
        {
            "core.current_run",
            "core.files",
            "core.findings",
            "core.forks",
            "core.locks",
            "core.pauses",
            "core.timetable",
        }
    ),
    frozenset({"core.model", "core.times"}),
    frozenset({"context_store", "core.file_locks"}),
    frozenset({"core.journal_file"}),
    frozenset({"core.exception_text", "core.safe_repr", "core.stats"}),
    frozenset({"core.expectations", "core.run_history"}),
    frozenset({"core.records"}),
    frozenset({"core.observers"}),
    frozenset({"core.labels", "core.run_journal"}),
    frozenset({"core.expectation_resolver", "core.recorder"}),
    # What writes the metrics state: tools, jobs and their runs, the scheduler's loop, changes of
    # jobs, hooks on executors and job stores, and what puts them together.
    frozenset({"adapters.base"}),
    frozenset(
        {
            "adapters.apscheduler3.auto_instrumentation",
            "adapters.apscheduler3.background_worker",
            "adapters.apscheduler3.child_process",
            "adapters.apscheduler3.due_jobs_reporting_run_times",
            "adapters.apscheduler3.exit_warning",
            "adapters.apscheduler3.changes_during_reading",
            "adapters.apscheduler3.jobstore_reader",
            "adapters.apscheduler3.loop_liveness",
            "adapters.apscheduler3.patching",
            "adapters.apscheduler3.triggers",
            "adapters.apscheduler3.scheduler_wrappers",
        }
    ),
    frozenset({"adapters.apscheduler3.checked_jobs", "adapters.apscheduler3.fire_time_searcher"}),
    frozenset(
        {
            "adapters.apscheduler3.job_describer",
            "adapters.apscheduler3.job_deserializer",
            "adapters.apscheduler3.start_prevention",
            "adapters.apscheduler3.tracked_jobs",
        }
    ),
    frozenset(
        {
            "adapters.apscheduler3.runs",
            "adapters.apscheduler3.scheduler_loop",
            "adapters.apscheduler3.trace_links",
            "adapters.apscheduler3.unsubmitted_runs",
        }
    ),
    frozenset({"adapters.apscheduler3.job_change_handler", "adapters.apscheduler3.upcoming_runs"}),
    frozenset({"adapters.apscheduler3.executors", "adapters.apscheduler3.jobstore_poller"}),
    frozenset(
        {
            "adapters.apscheduler3.job_checks",
            "adapters.apscheduler3.jobstores",
            "adapters.apscheduler3.time_checks",
        }
    ),
    frozenset({"adapters.apscheduler3.scheduler_checks"}),
    frozenset({"adapters.apscheduler3.adapter"}),
    frozenset({"adapters.registry"}),
    # What reads the metrics state.
    frozenset(
        {
            "export.given_span_ids",
            "export.metric_families",
            "export.run_list",
            "export.status_texts",
        }
    ),
    frozenset({"export.health", "export.job_attributes", "export.otel_metrics", "export.status"}),
    frozenset({"export.otel_traces", "export.text_format"}),
    frozenset({"export.prometheus", "export.run_log"}),
    frozenset({"export.interrupted_runs"}),
    frozenset(
        {
            "export.multiprocess.directory",
            "export.multiprocess.file_format",
            "export.multiprocess.gauge_modes",
        }
    ),
    frozenset(
        {
            "export.multiprocess.merge",
            "export.multiprocess.slots",
            "export.multiprocess.snapshot",
        }
    ),
    frozenset({"export.multiprocess.counter_offsets", "export.multiprocess.registry"}),
    frozenset({"export.multiprocess.writer"}),
    # What serves it.
    frozenset({"http.limits", "http.negotiation"}),
    frozenset({"http.messages", "http.watched_files"}),
    frozenset(
        {
            "http.access",
            "http.connections",
            "http.pages",
            "http.readers",
            "http.render_queue",
            "http.tls",
        }
    ),
    frozenset({"http.app", "http.status_pages", "http.wsgi_server"}),
    frozenset({"http.asgi", "http.server", "http.wsgi"}),
    frozenset({"http.endpoints"}),
    frozenset({"http"}),
    # Public hooks for servers, which only use `export`.
    frozenset({"config", "multiprocess", "run_log"}),
    # Where the parts are put together.
    frozenset({"api"}),
    # What people type, and what instruments for them.
    frozenset({"cli.errors", "instrumentor"}),
    frozenset(
        {
            "cli.alert_routes",
            "cli.imported_application",
            "cli.output",
            "cli.shipped_files",
            "cli.yaml_library",
        }
    ),
    frozenset({"cli.client", "cli.expected_jobs", "cli.rule_files", "cli.table"}),
    frozenset(
        {
            "cli.alertmanager",
            "cli.chain_checks",
            "cli.never_seen_rules",
            "cli.health",
            "cli.metrics",
            "cli.report_data",
            "cli.runs",
        }
    ),
    frozenset(
        {
            "cli.chain_alertmanager",
            "cli.chain_application",
            "cli.export",
            "cli.jobs_file",
            "cli.report",
            "cli.top",
        }
    ),
    frozenset({"cli.chain_prometheus", "cli.jobs"}),
    frozenset({"cli.chain_rules"}),
    frozenset({"cli.chain"}),
    frozenset({"cli.doctor"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
"""
Modules by their dotted name from the bottom up; above all of them is the package itself.

A package stands for its `__init__`. Modules of one layer do not import each other.
"""
INDEPENDENT = ("adapters", "export", "http")
"""Packages that do not import each other in either direction, whatever the order of layers."""


class Import(NamedTuple):
    """An import inside a package; modules are named relative to it, the package itself is ""."""

    module: str
    line: int
    target: str


def modules_in(package: Path) -> dict[str, Path]:
    """Return the files of a package by module name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_in(package: Path) -> list[Import]:
    """
    Return every import of one module of a package by another, wherever it stands.

    Those that only type checkers see are among them: they show as well what a module knows.
    """
    modules = modules_in(package)
    found = []
    for module, path in modules.items():
        is_package = path.name == "__init__.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8"), path)):
            for name in names_in(node, package.name, module, is_package=is_package):
                target = name
                while target not in modules:  # a name inside a module, and not a module
                    target = target.rpartition(".")[0]
                if target != module:
                    found.append(Import(module, getattr(node, "lineno", 0), target))
    return found


def names_in(node: ast.AST, package: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the names that a statement imports from a package, relative to it."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        parent = node.module or ""
        if node.level:
            here = [package, *module.split(".")] if module else [package]
            base = here[: len(here) - node.level + is_package]
            parent = ".".join([*base, *filter(None, [parent])])
        names = [f"{parent}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"}:
        names = [
            argument.value
            for argument in node.args[:1]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
    for name in names:
        top, _, rest = name.partition(".")
        if top == package:
            yield rest


def called(call: ast.Call) -> str:
    """Return the last part of the name of what is called, if it has one."""
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def violations(
    package: Path, layers: Sequence[frozenset[str]], independent: Sequence[str] = ()
) -> list[str]:
    """Return what is wrong with the imports in a package, in words."""
    height = {module: number for number, layer in enumerate(layers) for module in layer}
    height[""] = len(layers)
    imports = imports_in(package)
    found = [f"{module} is in no layer" for module in modules_in(package) if module not in height]
    for module, line, target in imports:
        if not {module, target} <= height.keys():
            continue
        importer, imported = (_part_of(name, independent) for name in (module, target))
        for wrong, direction in (
            (height[target] == height[module], "sideways"),
            (height[target] > height[module], "up"),
            (importer and imported and importer != imported, "across"),
        ):
            if wrong:
                found.append(f"{module}:{line} imports {direction}: {target or package.name}")
    return found + cycles(imports)


def _part_of(module: str, packages: Sequence[str]) -> str:
    """Return which of the packages a module belongs to, or an empty string."""
    return next((each for each in packages if f"{module}.".startswith(f"{each}.")), "")


def cycles(imports: Sequence[Import]) -> list[str]:
    """Return a cycle among imports, if there is one."""
    graph: dict[str, set[str]] = {each.module: set() for each in imports}
    for each in imports:
        graph[each.module].add(each.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["cycle: " + " -> ".join(error.args[1][::-1])]
    return []


class TestPackage:
    """The installed package."""

    def test_imports_only_go_down(self) -> None:
        """No module imports one of its own layer or of a higher one, and each has a layer."""
        assert violations(PACKAGE, LAYERS, INDEPENDENT) == []

    def test_imports_are_seen(self) -> None:
        """The test above finds imports to check."""
        found = {(each.module, each.target) for each in imports_in(PACKAGE)}
        assert {("api", "core.recorder"), ("core.recorder", "core.records")} <= found

    def test_every_layer_in_the_list_exists(self) -> None:
        """Every name in the list of layers is an existing module."""
        named = [module for layer in LAYERS for module in layer]
        assert sorted(named) == sorted(modules_in(PACKAGE).keys() - {""})

    @pytest.mark.parametrize("module", sorted(LAYERS[0]))
    def test_lowest_layer_needs_standard_library_only(self, module: str) -> None:
        """Modules of the lowest layer import only the standard library."""
        tree = ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))
        imported = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
        assert imported <= sys.stdlib_module_names

    def test_worker_imports_the_standard_library_only(self) -> None:
        """The module for children of process pools imports only the standard library."""
        code = (
            "import sys, apscheduler_telemetry.adapters.apscheduler3.child_process;"
            " print(*sorted({name.partition('.')[0] for name in sys.modules}))"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert "apscheduler_telemetry" in printed
        assert {"apscheduler", "opentelemetry", "prometheus_client"}.isdisjoint(printed)

    def test_package_imports_lazily(self) -> None:
        """Importing the package imports none of its modules."""
        code = (
            "import sys, apscheduler_telemetry;"
            " print(*(name for name in sys.modules if name.startswith('apscheduler')))"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert printed == ["apscheduler_telemetry"]


@pytest.mark.once
class TestViolations:
    """The check of imports itself, on generated packages."""

    LAYERS = (
        frozenset({"low"}),
        frozenset({"left._b", "right"}),
        frozenset({"left._a"}),
        frozenset({"left"}),
        frozenset({"top"}),
    )

    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        """Make a package without violations."""
        package = tmp_path / "package"
        for name, source in {
            "__init__": "from package.top import t",
            "low": "import sys",
            "left/__init__": "from package import low\nfrom package.left import _a",
            "left/_a": "from . import _b\nfrom ..low import x\nfrom package.left._b import y",
            "left/_b": "",
            "right": "import package.low",
            "top": "def f():\n    from .left._a import x\n    import package.right",
        }.items():
            path = package / f"{name}.py"
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(source)
        return package

    def test_imports_down_are_allowed(self, package: Path) -> None:
        """Imports of lower layers are allowed, also inside a sub-package."""
        assert violations(package, self.LAYERS, ["left", "right"]) == []

    @pytest.mark.parametrize(
        "source",
        [
            "from package.top import t",
            "from package import top",
            "from . import top",
            "from .top import t",
            "import package.top",
            "import sys, package.top as t",
            "def f():\n    from package.top import t",
            "class C:\n    def f(self):\n        import package.top",
            "if TYPE_CHECKING:\n    from package.top import t",
            "if typing.TYPE_CHECKING:\n    from .top import t",
            "try:\n    import package.top\nexcept ImportError:\n    pass",
            "import importlib\nimportlib.import_module('package.top')",
        ],
    )
    @pytest.mark.parametrize("module", ["low", "right"])
    def test_import_up_is_a_violation(self, package: Path, module: str, source: str) -> None:
        """An import of a higher layer is found in each syntactic form."""
        (package / f"{module}.py").write_text(source)
        line = source.count("\n", 0, source.index("top")) + 1
        assert f"{module}:{line} imports up: top" in violations(package, self.LAYERS)

    @pytest.mark.parametrize("source", ["import package", "from package import name"])
    def test_import_of_the_package_itself_is_a_violation(self, package: Path, source: str) -> None:
        """An import of the package itself is found, as it is the top layer."""
        (package / "low.py").write_text(source)
        assert "low:1 imports up: package" in violations(package, self.LAYERS)

    @pytest.mark.parametrize("source", ["from package import right", "from ..right import x"])
    def test_import_sideways_is_a_violation(self, package: Path, source: str) -> None:
        """An import within a layer is found, also in a sub-package."""
        (package / "left" / "_b.py").write_text(source)
        assert violations(package, self.LAYERS) == ["left._b:1 imports sideways: right"]

    def test_import_across_independent_layers_is_a_violation(self, package: Path) -> None:
        """An import between independent packages is found, also of a lower layer."""
        (package / "left" / "_a.py").write_text("from package.right import x")
        assert violations(package, self.LAYERS) == []
        found = violations(package, self.LAYERS, ["left", "right"])
        assert found == ["left._a:1 imports across: right"]

    @pytest.mark.parametrize("name", ["new", "left/new"])
    def test_module_without_a_layer_is_a_violation(self, package: Path, name: str) -> None:
        """A module without a layer is found, also in a sub-package."""
        (package / f"{name}.py").touch()
        module = name.replace("/", ".")
        assert violations(package, self.LAYERS) == [f"{module} is in no layer"]

    @pytest.mark.parametrize(
        "source",
        [
            "from . import _a",
            "def f():\n    from ._a import x",
            "if TYPE_CHECKING:\n    from ._a import x",
        ],
    )
    def test_import_up_inside_a_package_is_a_violation(self, package: Path, source: str) -> None:
        """An import of a higher layer inside a sub-package is found, and the cycle it makes."""
        (package / "left" / "_b.py").write_text(source)
        up, cycle = violations(package, self.LAYERS)
        assert up == f"left._b:{source.count(chr(10)) + 1} imports up: left._a"
        assert cycle.startswith("cycle: ")
        assert {"left._a", "left._b"} <= set(cycle.removeprefix("cycle: ").split(" -> "))
