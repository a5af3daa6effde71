"""No module assigns to an attribute of another object."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import apscheduler_telemetry

PACKAGE = Path(apscheduler_telemetry.__file__).parent
COPY = "a copy, which is returned"
NEW = "an object of another package that was just created, and has no constructor for this"
EXEMPT: Mapping[str, Mapping[str, str]] = {
    "adapters.apscheduler3.auto_instrumentation": {
        "BaseScheduler.start": "the patch of all schedulers, and its removal",
    },
    "adapters.apscheduler3.child_process": {
        "copy._due": COPY,
        "copy._delivery_args": COPY,
    },
    "adapters.apscheduler3.due_jobs_reporting_run_times": {
        "job.__class__": "for the moment in which the loop asks the job for its run times",
    },
    "adapters.apscheduler3.patching": {
        "setattr(owner, name)": "patches of APScheduler's objects, and their removal",
        "delattr(owner, name)": "the same",
    },
    "adapters.apscheduler3.scheduler_loop": {
        "setattr(self._logger, name)": "a stand-in for the user's logger passes this on to it",
    },
    "adapters.apscheduler3.start_prevention": {
        "BaseScheduler.__init__": "the patch of all schedulers, and its removal",
        "BaseScheduler._configure": "the same",
        "BaseScheduler._create_trigger": "the same",
        "CronTrigger.__init__": "the same",
        "Job.__getattr__": "the same, for all jobs",
        "scheduler.shutdown": "so that a scheduler that is only checked does nothing",
        "scheduler.start": "the same",
        "setattr(scheduler, name)": "the same, after its start",
    },
    "adapters.apscheduler3.triggers": {"trigger.jitter": COPY},
    "adapters.apscheduler3.scheduler_wrappers": {
        "_repr_formatter.maxother": NEW,
        "_repr_formatter.maxstring": NEW,
    },
    "adapters.registry": {"_repr_formatter.maxother": NEW, "_repr_formatter.maxstring": NEW},
    "api": {
        "setattr(scheduler, _HANDLE_ATTRIBUTE_NAME)": "the user's scheduler refers to its handle",
        "delattr(self._scheduler, _HANDLE_ATTRIBUTE_NAME)": "the same",
    },
    "cli.imported_application": {
        "Thread.start": "threads of an application that is only checked keep no process running",
        "sys.argv": "such an application finds no arguments; restored after its import",
        "sys.stdout": "what it prints at exit goes to standard error",
    },
    "config": {"_repr_formatter.maxother": NEW, "_repr_formatter.maxstring": NEW},
    "core.expectations": {
        "setattr(target, _EXPECTATIONS_ATTRIBUTE)": "a decorator returns the function itself",
    },
    "core.locks": {
        "owner._lock": "in a forked child no other thread is there; owners register for this",
    },
    "core.stats": {
        "copy.durations": COPY,
        "copy.delays": COPY,
        "copy.outcomes": COPY,
        "copy.exceptions": COPY,
        "copy.consecutive_failures": COPY,
        "copy.last_outcome": COPY,
        "copy.last_run_due_at": COPY,
        "copy.last_success_at": COPY,
        "copy.last_failure_at": COPY,
        "copy.last_duration": COPY,
        "copy.recorded": COPY,
        "copy.last_recorded": COPY,
    },
    "export.given_span_ids": {
        "with_ids.id_generator": "a copy of a tracer, as spans get their ids from it",
    },
    "export.multiprocess.slots": {"self._lock_file_finalizer.atexit": NEW},
    "export.otel_traces": {
        "span._start_time": "the SDK has no public way to correct the start of a span",
    },
    "http.tls": {"context.verify_mode": NEW},
}
"""Assignments that are meant, by module: the target as it is written, and the reason."""


def foreign_assignments(source: str) -> Iterator[tuple[int, str]]:
    """
    Yield each assignment to an attribute of an object that is not `self` or `cls`.

    Calls of ``setattr`` and ``delattr`` are among them, and deletions.

    Returns:
        The number of the line, and the target as it is written.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            owner = node.value
        elif isinstance(node, ast.Call) and _is_setter(node.func):
            owner = node.args[0]
        else:
            continue
        if isinstance(owner, ast.Name) and owner.id in {"self", "cls"}:
            continue
        if isinstance(node, ast.Call):
            written = f"{ast.unparse(node.func)}({', '.join(map(ast.unparse, node.args[:2]))})"
        else:
            written = ast.unparse(node)
        yield node.lineno, written


def _is_setter(function: ast.expr) -> bool:
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in {"setattr", "delattr", "__setattr__", "__delattr__"}


class TestPackage:
    """The installed package."""

    @pytest.fixture
    def found(self) -> Mapping[str, Mapping[str, int]]:
        """Return the line of each target by module."""
        modules = {}
        for path in sorted(PACKAGE.rglob("*.py")):
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            assignments = foreign_assignments(path.read_text("utf-8"))
            modules[name] = {target: line for line, target in assignments}
        return modules

    def test_objects_change_themselves_only(self, found: Mapping[str, Mapping[str, int]]) -> None:
        """Only methods of an object assign to its attributes, apart from the exemptions."""
        assert [
            f"{module}:{line} changes {target}"
            for module, targets in found.items()
            for target, line in targets.items()
            if target not in EXEMPT.get(module, ())
        ] == []

    def test_exemptions_are_needed(self, found: Mapping[str, Mapping[str, int]]) -> None:
        """Every exemption matches an assignment that exists."""
        assert [
            f"{module}: {target}"
            for module, targets in EXEMPT.items()
            for target in targets
            if target not in found.get(module, ())
        ] == []


@pytest.mark.once
class TestForeignAssignments:
    """The search for assignments itself."""

    @pytest.mark.parametrize(
        ("source", "target"),
        [
            ("other.x = 1", "other.x"),
            ("other.x: int = 1", "other.x"),
            ("other.x += 1", "other.x"),
            ("self.y = other.x = 1", "other.x"),
            ("a, (b, *other.x) = c", "other.x"),
            ("self.other.x = 1", "self.other.x"),
            ("self.others[0].x = 1", "self.others[0].x"),
            ("self.get().x = 1", "self.get().x"),
            ("for other.x in y: pass", "other.x"),
            ("with y as other.x: pass", "other.x"),
            ("del other.x", "other.x"),
            ("def f():\n    other.x = 1", "other.x"),
            ("setattr(other, name, 1)", "setattr(other, name)"),
            ("object.__setattr__(other, 'x', 1)", "object.__setattr__(other, 'x')"),
            ("delattr(self.other, 'x')", "delattr(self.other, 'x')"),
        ],
    )
    def test_assignment_to_another_object_is_found(self, source: str, target: str) -> None:
        """An assignment to another object is found in each syntactic form."""
        assert list(foreign_assignments(source)) == [(source.count("\n") + 1, target)]

    @pytest.mark.parametrize(
        "source",
        [
            "self.x = cls.x = x = 1",
            "self.x[other.y] = 1",
            "other.x[0] = 1",
            "self.x += other.y",
            "object.__setattr__(self, 'x', 1)",
            "f(x=1)",
        ],
    )
    def test_assignment_to_itself_is_not_found(self, source: str) -> None:
        """Assignments to `self`, or to what is no attribute, are not reported."""
        assert list(foreign_assignments(source)) == []
