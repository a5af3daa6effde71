"""Labels of jobs: readable, valid in every text format, bounded."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry.adapters.apscheduler3.job_describer import default_name
from apscheduler_telemetry.core import labels
from apscheduler_telemetry.core.labels import MAX_LABEL_LENGTH, JobLabeller
from apscheduler_telemetry.core.observers import ErrorReporter
from tests.helpers.faults import Boom
from tests.helpers.jobs import nothing


def job_of(func: Callable[..., Any] | str, **options: Any) -> Any:
    return BackgroundScheduler(timezone="UTC").add_job(func, **options)


class Report:
    def send(self) -> None: ...

    def __call__(self) -> None: ...

    @classmethod
    def make(cls) -> None: ...


class MonthlyReport(Report): ...


@functools.cache
def send_cached() -> None: ...


@functools.lru_cache(maxsize=1)
def receive_cached() -> None: ...


receive_alias = receive_cached


class Compiled:
    """A function as Cython makes it: an object of another class, with all names of a function."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.__qualname__ = f"compiled.{name}"

    def __call__(self) -> None: ...


class Named:
    """As a ufunc of NumPy, which has only this name before NumPy 2."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self) -> None: ...


class TestLabelValue:
    @pytest.mark.parametrize(
        "value", ["", "backup", "naïve ☃ 🦉", 'a"b\\c\nd', "a\0b", "x" * MAX_LABEL_LENGTH]
    )
    def test_legal_text_is_kept(self, value: str) -> None:
        """Text that an exposition can contain is kept; it is escaped later."""
        assert labels.label_value(value) == value

    def test_surrogates_are_written_as_escapes(self) -> None:
        """A lone surrogate, which UTF-8 cannot encode, becomes an ASCII escape."""
        assert labels.label_value("caf\udce9") == "caf\\udce9"

    def test_long_text_is_cut(self) -> None:
        """A text of 10 kB is truncated to `MAX_LABEL_LENGTH` characters."""
        cut = labels.label_value("x" * 10_000)
        assert len(cut) == MAX_LABEL_LENGTH
        assert cut.startswith("x" * 100)

    def test_long_texts_stay_apart(self) -> None:
        """Long texts that differ only in the truncated part remain different."""
        assert labels.label_value("x" * 10_000 + "1") != labels.label_value("x" * 10_000 + "2")

    def test_surrogates_count_as_what_they_become(self) -> None:
        """Text is truncated by its length after escaping."""
        assert len(labels.label_value("\ud800" * MAX_LABEL_LENGTH)) == MAX_LABEL_LENGTH

    def test_other_objects_are_written_out(self) -> None:
        """An object that is no string is labelled by its text."""
        assert labels.label_value(12) == "12"


class TestFunctionName:
    @pytest.mark.parametrize(
        ("func", "expected"),
        [
            (nothing, "tests.helpers.jobs:nothing"),
            ("tests.helpers.jobs:nothing", "tests.helpers.jobs:nothing"),
            (functools.partial(nothing), "tests.helpers.jobs:nothing"),
            (functools.partial(functools.partial(nothing)), "tests.helpers.jobs:nothing"),
            (print, "builtins:print"),
            (dict, "builtins:dict"),
        ],
        ids=["function", "reference", "partial", "partial of partial", "builtin", "class"],
    )
    def test_function_name_is_module_and_qualified_name(
        self, func: Callable[..., Any] | str, expected: str
    ) -> None:
        """A callable is named as in APScheduler's references, also in a partial."""
        assert labels.function_name(job_of(func)) == expected

    @pytest.mark.parametrize(
        ("func", "expected"),
        [
            (Report().send, ":Report.send"),
            (Report.make, ":Report.make"),
            (Report(), ":Report"),
            (lambda: None, ".<lambda>"),
            ([].clear, "builtins:list.clear"),
            (functools.partial(str.join, ",", []), "builtins:str.join"),
        ],
        ids=[
            "bound method",
            "class method",
            "callable object",
            "lambda",
            "builtin method",
            "descriptor",
        ],
    )
    def test_names_what_has_no_reference(self, func: Callable[..., Any], expected: str) -> None:
        """A callable without a reference has a name as well."""
        assert labels.function_name(job_of(func)).endswith(expected)

    @pytest.mark.parametrize(
        "wrap", [lambda func: func, functools.partial], ids=["plain", "partial"]
    )
    def test_callables_of_one_class_have_names_of_their_own(
        self, wrap: Callable[[Any], Callable[..., Any]]
    ) -> None:
        """APScheduler names a callable by its class, as it does compiled functions."""
        for func, expected in (
            (send_cached, "send_cached"),
            (receive_cached, "receive_cached"),
            (Compiled("send"), "compiled.send"),
            (Compiled("receive"), "compiled.receive"),
            (Named("add"), "add"),
        ):
            assert labels.function_name(job_of(wrap(func))) == f"{__name__}:{expected}"

    def test_reference_of_the_user_is_kept(self) -> None:
        """A callable that is given as a text has that name, also if its own is another one."""
        reference = f"{__name__}:receive_alias"
        assert labels.function_name(job_of(reference)) == reference

    @pytest.mark.parametrize("attributes", [{"__qualname__": 1}, {"__name__": [], "__module__": 2}])
    def test_name_that_is_no_text_is_that_of_the_class(self, attributes: dict[str, Any]) -> None:
        """An object may answer anything, such as a proxy another proxy, with its address."""
        func = Report()
        vars(func).update(attributes)
        job = SimpleNamespace(func=func, func_ref=None)
        assert labels.function_name(job) == f"{__name__}:Report"

    def test_function_name_is_bounded(self) -> None:
        """The name of a callable is valid and bounded like any label."""
        func: Any = lambda: None  # noqa: E731  # its name is to be changed
        func.__qualname__ = "\ud800" * 10_000
        assert len(labels.function_name(job_of(func)).encode()) == MAX_LABEL_LENGTH


class TestIsGenerated:
    def test_id_generated_by_apscheduler_is_recognised(self) -> None:
        """A generated id is recognised."""
        assert labels.is_generated_id(job_of(nothing).id)

    @pytest.mark.parametrize(
        "job_id", ["backup", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "", 999, uuid.UUID(int=1)]
    )
    def test_other_ids_are_the_users(self, job_id: object) -> None:
        """An id that is not 32 lower-case hexadecimal digits is the user's own."""
        assert not labels.is_generated_id(job_id)


class TestJobLabeller:
    def test_job_is_labelled_by_its_id(self) -> None:
        """A job is labelled by its id."""
        assert (
            JobLabeller(None, ErrorReporter()).choose_label(
                job_of(nothing, id="backup"), default_name
            )
            == "backup"
        )

    def test_job_with_a_generated_id_is_labelled_by_its_function(self) -> None:
        """A job with a generated id has the label of its function."""
        assert (
            JobLabeller(None, ErrorReporter()).choose_label(job_of(nothing), default_name)
            == "tests.helpers.jobs:nothing"
        )

    @pytest.mark.parametrize(
        "func",
        [nothing, functools.partial(nothing), MonthlyReport().send, Report.make, Report(), print],
        ids=["function", "partial", "inherited method", "class method", "object", "builtin"],
    )
    def test_job_with_a_generated_id_is_labelled_by_the_name_that_it_was_given(
        self, func: Callable[..., Any]
    ) -> None:
        """As the jobs of a framework, which all have the same function; others keep that."""
        labeller = JobLabeller(None, ErrorReporter())
        unnamed, named = job_of(func), job_of(func, name="remind the team")
        assert labeller.choose_label(unnamed, default_name) == labels.function_name(unnamed)
        assert labeller.choose_label(named, default_name) == "remind the team"

    def test_id_comes_before_the_name(self) -> None:
        """An id that the user has chosen is the label, whatever the name."""
        job = job_of(nothing, id="backup", name="the nightly backup")
        assert JobLabeller(None, ErrorReporter()).choose_label(job, default_name) == "backup"

    def test_callback_decides_the_label(self) -> None:
        """The label is what the user's callback returns for the job."""
        labeller = JobLabeller(lambda job: f"team-a/{job.id}", ErrorReporter())
        assert labeller.choose_label(job_of(nothing, id="backup"), default_name) == "team-a/backup"

    def test_callback_s_text_is_made_legal(self) -> None:
        """The text of a callback is escaped and truncated like an id."""
        labeller = JobLabeller(lambda job: "\ud800" + "x" * 10_000, ErrorReporter())
        label = labeller.choose_label(job_of(nothing, id="backup"), default_name)
        assert label.startswith("\\ud800x")
        assert len(label) == MAX_LABEL_LENGTH

    @pytest.mark.parametrize("returned", [None, 7, b"backup", "", ["backup"]])
    def test_callback_that_returns_no_text(self, returned: Any) -> None:
        """If a callback returns no string, or an empty one, the id is used."""
        errors = ErrorReporter()
        labeller = JobLabeller(lambda job: returned, errors)
        assert labeller.choose_label(job_of(nothing, id="backup"), default_name) == "backup"
        assert errors.counts()["job_label"] == 1

    def test_callback_that_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """If a callback raises, this is counted and logged once, and the id is used."""
        errors = ErrorReporter()

        def job_label(job: Any) -> str:
            raise Boom("on purpose")

        labeller = JobLabeller(job_label, errors)
        job = job_of(nothing, id="backup")
        with caplog.at_level(logging.ERROR, "apscheduler_telemetry"):
            assert [labeller.choose_label(job, default_name) for _ in range(3)] == ["backup"] * 3
        assert errors.counts()["job_label"] == 3
        assert len(caplog.records) == 1
        assert "on purpose" in caplog.text
