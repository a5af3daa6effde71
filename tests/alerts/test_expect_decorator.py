"""`expect`: expectations are kept on the function itself, and found by every way to call it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.job import Job

from apscheduler_telemetry import ArgumentTypeError, ArgumentValueError, Expectations, expect
from apscheduler_telemetry.core.expectations import find_expectations
from tests.helpers import decorated_jobs, jobs
from tests.helpers.decorated_jobs import Books, Report, settle
from tests.helpers.schedulers import HandDriven, forkserver_pool, hand_driven_scheduler
from tests.helpers.waiting import wait_until
from tests.helpers.watching import due, watched


def settle_undecorated() -> None: ...


def owner_of(func: Any) -> str | None:
    """Return the owner that is expected of a function."""
    found = find_expectations(func)
    return None if found is None else found.owner


class TestFunctions:
    """What can be decorated."""

    def test_function_is_returned_itself(self) -> None:
        """The decorator adds one attribute, and changes nothing else."""

        def function(first: int, *, second: str = "") -> int:
            return first

        before = dict(vars(function)), inspect.signature(function), function.__code__
        assert expect(owner="payments", max_duration=60)(function) is function
        [(name, kept)] = vars(function).items()
        assert name == "_apscheduler_telemetry_expectations"
        assert kept == Expectations(owner="payments", max_duration=60)
        delattr(function, name)
        assert before == (vars(function), inspect.signature(function), function.__code__)

    def test_coroutine_function(self) -> None:
        """A coroutine function stays one."""

        @expect(owner="payments")
        async def settle() -> int:
            return 7

        assert inspect.iscoroutinefunction(settle)
        assert asyncio.run(settle()) == 7
        assert owner_of(settle) == "payments"

    @pytest.mark.parametrize(
        ("func", "owner"),
        [
            (Books.close, "method"),
            (Books().close, "method"),
            (Books.check, "inner"),
            (Books.recheck, "outer"),
            (Books.open, "inner"),
            (Books.reopen, "outer"),
            (Books().reopen, "outer"),
            (Report, "class"),
            (Report(), "class"),
            (functools.partial(settle), "payments"),
            (functools.partial(functools.partial(Books().close)), "method"),
            (settle_undecorated, None),
            (functools.partial(settle_undecorated), None),
            (len, None),
            (Mock(), None),
            (Mock, None),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_found_by_every_way_to_call_it(self, func: Any, owner: str | None) -> None:
        """Methods in both orders, classes, objects, partials and bound methods are found."""
        assert owner_of(func) == owner

    def test_wrapper_has_those_of_what_it_wraps(self) -> None:
        """`functools.wraps` passes them on, and a decorator outside of it changes the wrapper."""

        def retrying(func: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(func)
            def wrapper(*args: Any) -> Any:
                return func(*args)

            return wrapper

        wrapped = retrying(settle)
        assert find_expectations(wrapped) == find_expectations(settle)
        expect(owner="shop", grace=5)(wrapped)
        assert find_expectations(wrapped) == Expectations(owner="shop", grace=5, max_duration=60)
        assert owner_of(settle) == "payments"
        assert owner_of(functools.lru_cache(settle)) == "payments"

    def test_outer_decorator_has_priority(self) -> None:
        """Of two decorators, the outer one overrides the inner one, field by field."""

        @expect(owner="outer", grace=1)
        @expect(owner="inner", max_duration=2)
        def function() -> None: ...

        assert find_expectations(function) == Expectations(owner="outer", grace=1, max_duration=2)

    def test_two_decorators_that_contradict_each_other(self) -> None:
        """Their values are checked together."""
        with pytest.raises(ArgumentValueError, match="min_duration must be less"):
            expect(min_duration=61)(settle)

    def test_subclass_inherits_methods_that_it_does_not_replace(self) -> None:
        """A method that replaces another one has expectations of its own."""

        class Mine(Books):
            @staticmethod
            def check() -> None: ...

        assert (owner_of(Mine().close), owner_of(Mine.check)) == ("method", None)


class TestBadInput:
    """What cannot be decorated, and values that are not valid."""

    @pytest.mark.parametrize(
        "target",
        [None, 7, "shop:settle", functools.partial(settle), Report(), Books().close, len, Mock()],
        ids=lambda value: type(value).__name__,
    )
    def test_anything_but_a_function_is_an_error(self, target: Any) -> None:
        """
        The error says what to do.

        Attributes of a partial, and of an object, would be pickled with its jobs; those of a bound
        method and of a builtin cannot be set.
        """
        state = dict(vars(target)) if hasattr(target, "__dict__") else None
        with pytest.raises(ArgumentTypeError, match=r"expect\(\) cannot decorate .*put @expect"):
            expect(owner="shop")(target)
        assert state is None or state == vars(target)

    def test_values_are_checked_where_they_are_said(self) -> None:
        """An invalid value raises before anything is decorated."""
        with pytest.raises(ArgumentValueError, match="severity must be"):
            expect(severity="loud")
        with pytest.raises(TypeError, match="positional"):
            expect(settle)  # type: ignore[call-arg, arg-type]

    def test_parameters_are_the_fields(self) -> None:
        """It has the same parameters as `Expectations`, and passes each on."""
        assert [str(each) for each in inspect.signature(expect).parameters.values()] == [
            str(each) for each in inspect.signature(Expectations).parameters.values()
        ]


class TestJobs:
    """Jobs and their pickles stay the same."""

    @pytest.mark.parametrize("kind", ["function", "method", "class"])
    def test_pickle_of_a_job_is_the_same_before_and_after(self, kind: str) -> None:
        """A job that was stored before the decorator came has the same bytes as one after it."""
        functions: dict[str, tuple[Any, Any]] = {
            "function": (settle_undecorated, settle_undecorated),
            "method": (Later.run, Later().run),
            "class": (Later, Later),
        }
        decorated, func = functions[kind]
        scheduler = hand_driven_scheduler()
        scheduler.start(paused=True)
        job = scheduler.add_job(func, "interval", hours=1, id="job")
        stored = pickle.dumps(job.__getstate__())
        try:
            expect(owner="payments")(decorated)
            assert pickle.dumps(job.__getstate__()) == stored
            restored = Job.__new__(Job)
            restored.__setstate__(pickle.loads(stored))
            assert restored.func is decorated
            assert owner_of(restored.func) == owner_of(job.func) == "payments"
        finally:
            del decorated._apscheduler_telemetry_expectations
            scheduler.shutdown()

    def test_job_from_a_store_has_the_expectations_of_the_code(self, tmp_path: Path) -> None:
        """A restored job has what its function says now, not what it said when it was added."""
        pytest.importorskip("sqlalchemy")
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        url = f"sqlite:///{tmp_path}/jobs.db"
        first = HandDriven(jobstores={"default": SQLAlchemyJobStore(url)})
        first.start(paused=True)
        first.add_job(settle, "interval", hours=1, id="job")
        first.shutdown()
        with watched(HandDriven(jobstores={"default": SQLAlchemyJobStore(url)})) as seen:
            seen.scheduler.start(paused=True)
            wait_until(lambda: seen.job("max_duration_seconds"))
            assert seen.job("max_duration_seconds") == 60
            labels = {"severity": "", "owner": "payments", "runbook_url": ""}
            assert seen.job("alert_info", **labels) == 1

    def test_process_pool(self) -> None:
        """A child of a process pool runs a decorated function."""
        with watched(HandDriven(executors={"default": forkserver_pool(1)})) as seen:
            assert isinstance(seen.scheduler._executors["default"], ProcessPoolExecutor)
            seen.scheduler.start()
            seen.scheduler.add_job(settle, **due())
            seen.scheduler.turn()
            wait_until(lambda: seen.runs() == {"success": 1})
            assert seen.job("max_duration_seconds") == 60

    def test_module_of_jobs_imports_the_standard_library_only(self) -> None:
        """The decorator does not make children of process pools import Prometheus."""
        code = f"from {decorated_jobs.__name__} import settle; print(settle())"
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert "apscheduler_telemetry" in printed
        assert {"apscheduler", "opentelemetry", "prometheus_client"}.isdisjoint(printed)

    def test_removed_with_the_function(self) -> None:
        """A job that gets another function has the expectations of that one."""
        with watched(hand_driven_scheduler()) as seen:
            seen.scheduler.start(paused=True)
            job = seen.scheduler.add_job(settle, "interval", hours=1, id="job")
            assert seen.job("max_duration_seconds") == 60
            job.modify(func=jobs.nothing)
            assert seen.job("max_duration_seconds") is None


class Later:
    """A class whose method is decorated later."""

    def run(self) -> None: ...
