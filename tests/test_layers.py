"""The layers of the package: imports only go down, and there are no cycles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import apscheduler_telemetry

PACKAGE = Path(apscheduler_telemetry.__file__).parent
LAYERS: Sequence[frozenset[str]] = (
    # Knows nothing of ours.
    frozenset({"_version", "context_store", "environment_variables", "errors"}),
    # Plain data, the metrics state and its observers.
    frozenset({"core"}),
    # What writes the metrics state, what reads it, and what serves it, never each other.
    frozenset({"adapters", "export", "http"}),
    # Public hooks for servers, which only use `export`.
    frozenset({"multiprocess"}),
    # Where the parts are put together.
    frozenset({"api"}),
    # What people type, and what instruments for them.
    frozenset({"cli", "instrumentor"}),
)
"""Modules and sub-packages from the bottom up; above all of them is the package itself."""


class Import(NamedTuple):
    """An import inside a package; modules are named relative to it, the package itself is ""."""

    module: str
    line: int
    target: str
    for_types: bool

    @property
    def units(self) -> tuple[str, str]:
        """The importing and the imported module or sub-package, as `LAYERS` names them."""
        return self.module.partition(".")[0], self.target.partition(".")[0]


def modules_in(package: Path) -> dict[str, Path]:
    """Return the files of a package by module name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_in(package: Path) -> list[Import]:
    """Return every import of one module of a package by another, wherever it stands."""
    modules = modules_in(package)
    found = []
    for module, path in modules.items():
        is_package = path.name == "__init__.py"
        tree = ast.parse(path.read_text("utf-8"), path)
        for node, for_types in walk(tree):
            for name in names_in(node, package.name, module, is_package=is_package):
                target = name
                while target not in modules:  # a name inside a module, and not a module
                    target = target.rpartition(".")[0]
                if target != module:
                    found.append(Import(module, getattr(node, "lineno", 0), target, for_types))
    return found


def walk(node: ast.AST, *, for_types: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Yield all nodes below one, and whether they are there for type checkers only."""
    for child in ast.iter_child_nodes(node):
        below = for_types or (
            isinstance(node, ast.If)
            and child in node.body
            and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        yield child, below
        yield from walk(child, for_types=below)


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


def violations(package: Path, layers: Sequence[frozenset[str]]) -> list[str]:
    """Return what is wrong with the imports in a package, in words."""
    height = {unit: number for number, layer in enumerate(layers) for unit in layer}
    height[""] = len(layers)
    found = [
        f"{unit} is in no layer"
        for unit in sorted({module.partition(".")[0] for module in modules_in(package)})
        if unit not in height
    ]
    for each in imports_in(package):
        importer, imported = each.units
        if importer == imported or not {importer, imported} <= height.keys():
            continue
        for wrong, direction in (
            (height[imported] == height[importer], "sideways"),
            (height[imported] > height[importer], "up"),
        ):
            if wrong:
                where = f"{each.module}:{each.line}"
                found.append(f"{where} imports {direction}: {each.target or package.name}")
    return found + cycles(imports_in(package))


def cycles(imports: Sequence[Import]) -> list[str]:
    """
    Return a cycle among imports, if there is one.

    What only type checkers see cannot hurt at run time, and parts of one sub-package may well
    name each other's types.
    """
    graph: Mapping[str, set[str]] = {each.module: set() for each in imports}
    for each in imports:
        if not each.for_types:
            graph[each.module].add(each.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["cycle: " + " -> ".join(error.args[1][::-1])]
    return []


class TestPackage:
    """The package as it is installed."""

    def test_imports_only_go_down(self) -> None:
        """No module imports one of its own layer or of a higher one, and none is left out."""
        assert violations(PACKAGE, LAYERS) == []

    def test_imports_are_seen(self) -> None:
        """The test above looks at something."""
        assert {"api", "adapters"} <= {each.units[0] for each in imports_in(PACKAGE)}

    def test_layers_are_there(self) -> None:
        """Every name in the layers is a module: a stale one would hide the next mistake."""
        units = {module.partition(".")[0] for module in modules_in(PACKAGE)} - {""}
        assert set().union(*LAYERS) == units

    @pytest.mark.parametrize("module", sorted(LAYERS[0]))
    def test_lowest_layer_needs_standard_library_only(self, module: str) -> None:
        """Importing a module of the lowest layer imports nothing that has to be installed."""
        tree = ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))
        imported = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
        assert imported <= sys.stdlib_module_names

    def test_worker_is_light(self) -> None:
        """A child of a process pool that imports what it needs loads no dependency of ours."""
        code = (
            "import sys, apscheduler_telemetry.adapters.apscheduler3.child_process;"
            " print(*sorted({name.partition('.')[0] for name in sys.modules}))"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert "apscheduler_telemetry" in printed
        assert {"apscheduler", "opentelemetry", "prometheus_client"}.isdisjoint(printed)

    def test_package_is_lazy(self) -> None:
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
    """The reader of imports itself, on packages made up for it."""

    LAYERS = (frozenset({"low"}), frozenset({"left", "right"}), frozenset({"top"}))

    @pytest.fixture
    def package(self, tmp_path: Path) -> Path:
        """Make a package that is in order."""
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

    def test_order(self, package: Path) -> None:
        """What only goes down is fine, and so is what stays inside a sub-package."""
        assert violations(package, self.LAYERS) == []

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
    def test_up(self, package: Path, module: str, source: str) -> None:
        """An import of a higher layer is found however it is written."""
        (package / f"{module}.py").write_text(source)
        line = source.count("\n", 0, source.index("top")) + 1
        assert f"{module}:{line} imports up: top" in violations(package, self.LAYERS)

    @pytest.mark.parametrize("source", ["import package", "from package import name"])
    def test_package_itself(self, package: Path, source: str) -> None:
        """The package is above all its modules."""
        (package / "low.py").write_text(source)
        assert "low:1 imports up: package" in violations(package, self.LAYERS)

    @pytest.mark.parametrize("source", ["from package import right", "from ..right import x"])
    def test_sideways(self, package: Path, source: str) -> None:
        """An import of a neighbour is found, in a sub-package too."""
        (package / "left" / "_b.py").write_text(source)
        assert violations(package, self.LAYERS) == ["left._b:1 imports sideways: right"]

    def test_no_layer(self, package: Path) -> None:
        """A module that is in no layer is found."""
        (package / "new.py").touch()
        assert violations(package, self.LAYERS) == ["new is in no layer"]

    @pytest.mark.parametrize("source", ["from . import _a", "def f():\n    from ._a import x"])
    def test_cycle(self, package: Path, source: str) -> None:
        """A cycle is found, inside a sub-package and inside functions too."""
        (package / "left" / "_b.py").write_text(source)
        [found] = violations(package, self.LAYERS)
        assert found.startswith("cycle: ")
        assert {"left._a", "left._b"} <= set(found.removeprefix("cycle: ").split(" -> "))

    def test_cycle_of_types(self, package: Path) -> None:
        """Parts of a sub-package may name each other's types."""
        (package / "left" / "_b.py").write_text("if TYPE_CHECKING:\n    from ._a import x")
        assert violations(package, self.LAYERS) == []
