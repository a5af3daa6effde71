"""
One submission of a job to an executor: its runs, and the view of the job that measures them.
"""

from __future__ import annotations

import contextlib
import copy
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.job import Job
from apscheduler.util import iscoroutinefunction_partial

from apscheduler_telemetry.adapters.apscheduler3 import child_process as _worker
from apscheduler_telemetry.core.model import Outcome, RunError
from apscheduler_telemetry.core.recorder import MAX_FRESH, Run, State
from apscheduler_telemetry.core.safe_repr import brief, brief_call

if TYPE_CHECKING:
    from apscheduler_telemetry.adapters.apscheduler3.executors import ExecutorHook
    from apscheduler_telemetry.core.recorder import Entry

_SUCCESS = Outcome.SUCCESS  # see _ledger: looked up in the enumeration, it would cost every run
_OUTCOMES: Mapping[Any, Outcome] = {
    EVENT_JOB_EXECUTED: Outcome.SUCCESS,
    EVENT_JOB_ERROR: Outcome.ERROR,
    EVENT_JOB_MISSED: Outcome.MISSED,
}


class SubmissionId(str):
    """A job id by which the executor's callbacks tell which submission has ended."""

    __slots__ = ("view",)
    view: JobView

    def __new__(cls, value: str, view: JobView) -> SubmissionId:  # noqa: PYI034  # Self is 3.11's
        self = super().__new__(cls, value)
        self.view = view
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


class _View:
    """
    What an executor gets in place of a job: the job, with its callable measured.

    Everything else is asked of the job when it is asked of the view, as a job in a memory store
    may be modified while it is queued.

    Attributes:
        id: the job's own, or ours where that would not tell which submission has ended.
    """

    __slots__ = ()
    _job: Any
    id: Any

    def __eq__(self, other: object) -> bool:
        return bool(self._job == (other._job if isinstance(other, _View) else other))

    __hash__ = None  # type: ignore[assignment]  # as a Job has none

    def __str__(self) -> str:
        return str(self._job)

    def __repr__(self) -> str:
        return repr(self._job)

    @property  # type: ignore[misc]  # isinstance(view, Job) must hold, as for the job itself
    def __class__(self) -> type:
        return type(self._job)

    # What an executor of the user's may do to a job: send its state elsewhere, or change a copy.

    def __getstate__(self) -> Any:
        return self._job.__getstate__()


def _delegate(name: str) -> property:
    """Return a property that asks the job; the same as __getattr__, for a third of its price."""
    return property(attrgetter(f"_job.{name}"))


class JobView(_View):
    """The view of a job whose submission does the measuring; pickled, it takes that along."""

    __slots__ = ("__weakref__", "_hook", "_job", "_key", "_submission", "id")

    def __init__(self, job: Any, submission: Submission, key: Hashable) -> None:
        _set_job(self, job)
        _set_hook(self, submission.hook)
        _set_key(self, key)
        _set_id(self, key if key == job.id else SubmissionId(job.id, self))
        _set_submission(self, submission)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._job, name, value)

    @property
    def func(self) -> Callable[..., Any]:
        func = self._job.func
        hook = self._hook
        if not hook.active:
            measured: Callable[..., Any] = func
        elif hook.may_await and iscoroutinefunction_partial(func):
            measured = _worker.timed_coroutine(func, self._submission)
        else:
            measured = _worker.TimedCall(func, self._submission)
        return measured

    # What every run asks of its job.
    _jobstore_alias = _delegate("_jobstore_alias")
    max_instances = _delegate("max_instances")
    args = _delegate("args")
    kwargs = _delegate("kwargs")
    misfire_grace_time = _delegate("misfire_grace_time")

    def __copy__(self) -> JobView:
        return JobView(copy.copy(self._job), self._submission, self._key)

    def __deepcopy__(self, memo: dict[int, Any]) -> JobView:
        return JobView(copy.deepcopy(self._job, memo), self._submission, self._key)

    def __reduce__(self) -> tuple[Any, ...]:
        # By way of the submission, which the run times refer to as well: in the other process
        # both must be the same object again.
        return _worker.itself, (self._submission,)


class PlainView(_View, Run):
    """
    A run and the view of its job in one, for a single run, in this process, by ``run_job``.

    It measures by itself and takes the short way into the books: as long as it is in the lane of
    its executor, nobody else ends it unless something goes wrong. If nothing does, the next run of
    the job uses it again.
    """

    # What every run asks of its job is copied for each run, and again when the job is modified
    # while it waits: asking by way of us takes five times as long.
    __slots__ = (
        *("__weakref__", "_job", "_jobstore_alias", "args", "id", "kwargs"),
        *("max_instances", "misfire_grace_time"),
    )

    def __init__(self, job: Any, entry: Entry, due: datetime) -> None:
        Run.__init__(self, entry, due)
        self._job = job
        self.id = job.id
        self._jobstore_alias = job._jobstore_alias  # noqa: SLF001

    def renew(self) -> None:
        """Take over what the job is now."""
        job = self._job
        self.args, self.kwargs = job.args, job.kwargs
        self.max_instances, self.misfire_grace_time = job.max_instances, job.misfire_grace_time

    __hash__ = object.__hash__  # type: ignore[assignment]  # as a run has

    def __copy__(self) -> Any:
        return copy.copy(self._job)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._job, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _worker.itself, (self._job,)


for _name in set(dir(Job)) - set(dir(PlainView)) - {"func"}:
    setattr(PlainView, _name, _delegate(_name))


def plain_views(  # noqa: C901  # a call more would cost every run
    hook: ExecutorHook,
) -> type[PlainView]:
    """Return a class of views for one executor: what they have in common costs no run anything."""
    lane, ledger, pipeline, guard = hook.lane, hook.ledger, hook.pipeline, hook.guard

    def func(self: PlainView, /, *args: Any, **kwargs: Any) -> Any:
        """Call the job's callable, and measure around it."""
        call, entry = self._job.func, self.entry
        is_followed = pipeline.is_followed
        if is_followed and (
            self.started is not None
            or self.outcome is not None
            or entry.idle is self
            or not hook.active
        ):
            return call(*args, **kwargs)  # followed already, or over
        self.started = started = time()
        if is_followed:
            pipeline.enter(self)
        since = perf_counter()
        try:
            # The latter for half of the price.
            result = call(*args, **kwargs) if args or kwargs else call()
        except BaseException as exception:
            Submission(hook, None, [self]).leave((self, since), exception)
            _worker.hide_this_frame(exception)
            raise
        duration = perf_counter() - since
        if is_followed:
            self.duration = duration
        try:
            # The short way of Ledger.finish, here as a call more would cost every run.
            taken = lane.pop(self.id, None)
            as_usual = taken is self and self.posted is None
            if as_usual:
                fresh = entry.fresh
                fresh.extend((self.scheduled, started, duration, self.exemplar))
                if len(fresh) >= MAX_FRESH:
                    ledger.enter(entry.account)
            else:
                ledger.succeed(self, lane, taken, duration)
        except Exception:  # noqa: BLE001  # telemetry never changes the job
            as_usual = False
            guard.failed("adapter")
        if is_followed:
            pipeline.leave(self, _SUCCESS, None)
            self.duration = self.exemplar = None
        if as_usual and entry.lasts:
            self.started = None
            entry.idle = self  # from now on it may be the next one
        return result

    return type("PlainView", (PlainView,), {"func": func, "__slots__": ()})


_worker.OUR_FILES.add(plain_views.__code__.co_filename)
# Past JobView.__setattr__, which is about the job's own attributes.
_set_hook = vars(JobView)["_hook"].__set__
_set_id = vars(JobView)["id"].__set__
_set_job = vars(JobView)["_job"].__set__
_set_key = vars(JobView)["_key"].__set__
_set_submission = vars(JobView)["_submission"].__set__


def key_of(view: JobView) -> Hashable:
    """Return by what the executor's hook finds a view: its job's id, or something of its own."""
    key: Hashable = view._key  # noqa: SLF001  # ours
    return key


def let_go(view: JobView) -> None:
    """Give a view the job's own id, as nobody will clean ours out of its events any more."""
    _set_id(view, view._job.id)  # noqa: SLF001


def is_of(view: JobView, events: Sequence[Any]) -> bool:
    """Tell whether events are of a view's runs, and not of one that was under way before us."""
    scheduled = getattr(events[0], "scheduled_run_time", None) if events else None
    return scheduled is None or any(scheduled == run.scheduled for run in submission_of(view).runs)


def submission_of(view: JobView) -> Submission:
    """Return the submission of a view."""
    submission: Submission = view._submission  # noqa: SLF001  # ours
    return submission


class Submission:
    """
    The runs of one submission, and whoever ends them first.

    Where the callable runs in this process, `enter` and `leave` are called around it. What ran in
    another process, was found too late, or got lost is known from the executor's callback.

    Attributes:
        pool: the `concurrent.futures` pool that it went to, where the hook infers starts.
    """

    pool: Any = None
    _index = 0
    _is_walked = False
    _abandoned = False
    _carriers: list[Mapping[str, str] | None] | None = None

    def __init__(self, hook: ExecutorHook, job: Any, runs: Sequence[Run]) -> None:
        self.hook = hook
        self.job = job
        self.runs = runs
        self._measurements: dict[int, _worker.Measurement] = {}

    def tell_arguments(self) -> None:
        """Let the runs tell what their callable is called with."""
        arguments = self._told(brief_call, self.job.args, self.job.kwargs)
        for run in self.runs:
            run.arguments = arguments

    # Called from run_job, in this process; see _worker.Owner.

    def at(self, index: int) -> None:
        self._index = index
        self._is_walked = True

    def through(self) -> None:
        self._is_walked = False
        if self._abandoned:
            self.end_all(Outcome.MISSED)

    def enter(self) -> tuple[Run, float] | None:
        try:
            run = self._current()
            if run is None:
                return None
            hook = self.hook
            hook.ledger.start(run, time())
            hook.pipeline.enter(run)
            return run, perf_counter()
        except Exception:  # noqa: BLE001  # telemetry never changes the job
            self.hook.guard.failed("adapter")
            return None

    def leave(
        self,
        token: tuple[Run, float] | None,
        exception: BaseException | None,
        result: Any = None,
    ) -> None:
        now = perf_counter()
        if token is None:
            return
        run, since = token
        try:
            outcome, error = Outcome.SUCCESS, None
            if exception is not None:
                outcome, error = Outcome.ERROR, RunError.of(exception, self._stack(exception))
            elif self.hook.capture.result:
                run.result = self._told(brief, result)
            self.hook.ledger.finish(run, outcome, duration=now - since, error=error)
            self.hook.pipeline.leave(run, outcome, error)
        except Exception:  # noqa: BLE001
            self.hook.guard.failed("adapter")

    # Called when it leaves this process, and from the executor's callbacks.

    def __reduce__(self) -> tuple[Any, ...]:
        if self._carriers is None:  # a second try, in a fresh pool, carries the same
            carriers = [self.hook.pipeline.carry(run) for run in self.runs]
            self._carriers = carriers if any(carriers) else []
        return _worker.revive, (self.job, self._carriers, _worker.address_of(self))

    def measured(self, measurement: _worker.Measurement) -> None:
        """Take what was measured in another process, just before its event."""
        self._measurements[measurement.position] = measurement

    def returned(self, events: Sequence[Any]) -> None:
        """Take what the executor returned: end the runs, make the events what they were."""
        try:
            in_order = len(events) == len(self.runs)
            for position, event in enumerate(events):
                self.told(event, position if in_order else None)
        finally:
            self.end_all(Outcome.LOST)  # an executor that returned fewer events than runs

    def told(self, event: Any, index: int | None = None) -> None:
        """Take one event: end its run, make the event what it was; it may be of the user's own."""
        if index is None:
            index = self._index_of(getattr(event, "scheduled_run_time", None))
        exception = getattr(event, "exception", None)
        if exception is not None:
            _worker.hide_frames(exception)
        formatted = getattr(event, "traceback", None) or ""
        if (cleaned := _worker.hide_entries(formatted)) != formatted:
            _put(event, "traceback", cleaned)
        if index is not None and self.runs[index].state is not State.DONE:
            self._end(self.runs[index], event, self._measurements.get(index))
        if type(getattr(event, "job_id", "")) is not str:
            _put(event, "job_id", self.job.id)

    def failed(self, exception: BaseException) -> None:
        """Take that the executor got no result."""
        # An asyncio executor may have given up a thread that works on: what comes of its runs is
        # known when it leaves the callable, and of those that it drops when it is through. Told
        # before asked, as that thread asks in the opposite order: one of both ends the rest.
        self._abandoned = True
        if not self._is_walked:
            self.end_all(Outcome.LOST, RunError.of(exception))

    def refused(self, _: BaseException) -> None:
        """Take that too many runs of the job were under way."""
        self.end_all(Outcome.SKIPPED)

    def end_all(self, outcome: Outcome, error: RunError | None = None) -> None:
        """End all runs that have not ended."""
        for run in self.runs:
            if self.hook.ledger.settle(run, outcome, error):
                self.hook.pipeline.settle(run, outcome, error)

    @property
    def done(self) -> bool:
        return all(run.state is State.DONE for run in self.runs)

    def _end(self, run: Run, event: Any, measurement: _worker.Measurement | None) -> None:
        ledger, pipeline = self.hook.ledger, self.hook.pipeline
        outcome = _OUTCOMES.get(getattr(event, "code", None), Outcome.LOST)
        error, exception = None, getattr(event, "exception", None)
        if exception is not None:
            stack = self._stack(exception, getattr(event, "traceback", None))
            error = RunError.of(exception, stack)
        if measurement is None:
            ledger.settle(run, outcome, error)
        else:
            if outcome is Outcome.SUCCESS and self.hook.capture.result:
                run.result = self._told(brief, event.retval)
            ledger.finish(
                run,
                outcome,
                duration=measurement.duration,
                started=measurement.started,
                error=error,
            )
            if measurement.failure:
                self.hook.guard.noted("spans", measurement.failure)
        pipeline.settle(run, outcome, error)

    def _told(self, tell: Callable[..., str], *values: Any) -> str | None:
        try:
            return tell(*values)
        except Exception:  # noqa: BLE001  # a collection may change while it is looked at
            self.hook.guard.failed("spans")
            return None

    def _stack(self, exception: BaseException, entries: str | None = None) -> str:
        """Return the stack trace of `exception`, whose `entries` may be all that has come home."""
        if not self.hook.capture.stacktrace:
            return ""
        try:
            whole = traceback.TracebackException.from_exception(exception)
            if entries:
                last = "".join(whole.format_exception_only())
                return f"Traceback (most recent call last):\n{entries}{last}"
            # On Python 3.10 our own frame is still in it; see _worker.
            theirs = [frame for frame in whole.stack if frame.filename not in _worker.OUR_FILES]
            whole.stack = traceback.StackSummary.from_list(theirs)
            return "".join(whole.format())
        except Exception:  # noqa: BLE001  # an exception of the user's may be anything
            self.hook.guard.failed("spans")
            return ""

    def _current(self) -> Run | None:
        if self._is_walked or len(self.runs) == 1:
            run = self.runs[self._index]
            return run if run.state is State.QUEUED else None
        # Not walked through: an executor of the user's that calls the callable by itself.
        return next((run for run in self.runs if run.state is State.QUEUED), None)

    def _index_of(self, scheduled: datetime | None) -> int | None:
        at = (index for index, run in enumerate(self.runs) if run.scheduled == scheduled)
        return next(at, None)


def _put(event: Any, name: str, value: Any) -> None:
    with contextlib.suppress(AttributeError):  # an event of the user's may forbid it
        setattr(event, name, value)
