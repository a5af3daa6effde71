"""
What may be exported of an exception: its message and its stack trace, bounded and redacted.

An exception's message often quotes what the job worked on, such as a URL with a password. So the
application can keep messages in the process, or have them redacted by a function of its own.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from apscheduler_telemetry.core.current_run import REPORTED_FAILURE_ERROR_TYPE
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import (
    MAX_MESSAGE_LENGTH,
    CaptureOptions,
    ErrorDescription,
    exception_message,
    exception_type_name,
)

MAX_STACKTRACE_LENGTH = 16_384
"""Characters of a stack trace: the last ones, as the cause is at its end."""
MAX_REDACT_INPUT_LENGTH = 65_536
"""
Characters that are passed to ``redact=`` of one text.

More than are exported of it, so that what it looks for is not cut off in the middle.
"""
MAX_EXCEPTIONS_AND_NOTES = 20
"""Exceptions in a redacted stack trace: the last ones of the chain, and the first of a group."""


class ExceptionDescriber:
    """
    Describes exceptions as the application allows.

    Args:
        capture: which of a job's own data may leave the process.
        on_redact_failure: called with a description if ``redact=`` fails; that has no text of the
            exception.
    """

    def __init__(self, capture: CaptureOptions, on_redact_failure: Callable[[str], None]) -> None:
        self._captures_message = capture.captures_message
        self._redact = capture.redact
        self._on_redact_failure = on_redact_failure

    @property
    def is_restricted(self) -> bool:
        """Whether an exception must not be exported as it is."""
        return not self._captures_message or self._redact is not None

    def describe(self, exception: BaseException, stacktrace: str = "") -> ErrorDescription:
        """Describe `exception`, whose stack trace was made by `stacktrace`."""
        if not self.is_restricted:
            return ErrorDescription.from_exception(exception, stacktrace)
        return ErrorDescription(
            type=exception_type_name(exception),
            message=self.exportable_message(exception),
            traceback=stacktrace,
        )

    def describe_reported_failure(self, reason: str) -> ErrorDescription:
        """Describe a failure that a callable has reported by ``current_run().fail(reason)``."""
        message = self.redact(reason)
        return ErrorDescription(
            type=REPORTED_FAILURE_ERROR_TYPE,
            message=None if message is None else message[:MAX_MESSAGE_LENGTH],
        )

    def exportable_message(self, exception: BaseException) -> str | None:
        """Return the message of an exception; None if it may not be exported."""
        if not self._captures_message:
            return None
        if self._redact is None:
            return exception_message(exception)
        redacted = self.redact(exception_message(exception, MAX_REDACT_INPUT_LENGTH))
        return None if redacted is None else redacted[:MAX_MESSAGE_LENGTH]

    def redact(self, text: str) -> str | None:
        """Return what may be exported of a text about an exception; None for nothing."""
        if not self._captures_message:
            return None
        if self._redact is None:
            return text
        try:
            redacted: object = self._redact(text[:MAX_REDACT_INPUT_LENGTH])
        except BaseException as error:  # noqa: BLE001  # user code, whose error may quote the text
            raise_if_interruption(error)
            self._on_redact_failure(f"redact raised {exception_type_name(error)}")
            return None
        if not isinstance(redacted, str):
            self._on_redact_failure("redact must return a str")
            return None
        return redacted

    def format_stacktrace(
        self, exception: BaseException, child_stack_text: str | None = None
    ) -> str:
        """
        Return the stack trace of an exception, no longer than `MAX_STACKTRACE_LENGTH`.

        If messages are restricted, lines of source count as such: they may be the message, as in
        ``raise ValueError("...")``.

        Args:
            exception: the exception.
            child_stack_text: the lines of its stack, if it was raised in a child process.
        """
        text = None if self.is_restricted else _standard_stacktrace(exception, child_stack_text)
        if text is None:
            text = "".join(self._redacted_stacktrace(exception, child_stack_text))
        return text[-MAX_STACKTRACE_LENGTH:]

    def can_be_logged_unredacted(self, exception: BaseException) -> bool:
        """Return whether Python itself, such as its `logging`, may and can write an exception."""
        return not self.is_restricted and _standard_stacktrace(exception, None) is not None

    def _redacted_stacktrace(
        self, exception: BaseException, child_stack_text: str | None
    ) -> Iterator[str]:
        if child_stack_text:
            yield _TRACEBACK_HEADER
            yield from self._redact_stack_lines(child_stack_text)
            yield from self._format_type_message_and_notes(exception)
            return
        for link, (each, connection) in enumerate(_exception_chain(exception)):
            if link:
                yield connection
            trace = _read_attribute(each, "__traceback__")
            if trace is not None:
                yield _TRACEBACK_HEADER
                stack = traceback.extract_tb(trace)
                yield from self._redact_stack_lines("".join(stack.format()))
            yield from self._format_type_message_and_notes(each)
            for part in _parts_of_group(each):
                yield f"Part of it, {exception_type_name(part)}:\n"
                yield from self._redacted_stacktrace_of_part(part)

    def _redacted_stacktrace_of_part(self, part: BaseException) -> Iterator[str]:
        stack = traceback.extract_tb(_read_attribute(part, "__traceback__"))
        yield from self._redact_stack_lines("".join(stack.format()))
        yield from self._format_type_message_and_notes(part)

    def _redact_stack_lines(self, stack_text: str) -> Iterator[str]:
        """Yield the lines of `stack_text` that name a frame, and what may be exported of others."""
        for line in stack_text.splitlines():
            if _STACK_LINE_PATTERN.match(line):
                yield f"{line}\n"
            elif self._captures_message and (redacted := self.redact(line)):
                yield f"{redacted}\n"

    def _format_type_message_and_notes(self, exception: BaseException) -> Iterator[str]:
        """Yield the type of an exception with its message, and its notes."""
        message = self.exportable_message(exception)
        yield f"{exception_type_name(exception)}{f': {message}' if message else ''}\n"
        notes = _read_attribute(exception, "__notes__")
        if self._captures_message and type(notes) in {list, tuple}:
            for note in notes[:MAX_EXCEPTIONS_AND_NOTES]:
                is_text = issubclass(type(note), str)
                if is_text and (redacted := self.redact(str.__str__(note))):
                    yield f"{redacted}\n"


def _standard_stacktrace(exception: BaseException, child_stack_text: str | None) -> str | None:
    """Return what Python prints of an exception; None if its class does not let Python do so."""
    try:
        whole = traceback.TracebackException.from_exception(exception)
        if not child_stack_text:
            return "".join(whole.format())
        return f"{_TRACEBACK_HEADER}{child_stack_text}{''.join(whole.format_exception_only())}"
    except BaseException as error:  # noqa: BLE001  # properties and metaclasses are user code
        raise_if_interruption(error)
        return None


def _read_attribute(exception: BaseException, name: str) -> Any:
    """Return an attribute; None if it is missing, or a property of the user's that raises."""
    try:  # without a `__getattribute__` of the user's
        return BaseException.__getattribute__(exception, name)
    except BaseException as error:  # noqa: BLE001
        raise_if_interruption(error)
        return None


def _exception_chain(exception: BaseException) -> list[tuple[BaseException, str]]:
    """
    Return an exception and those that led to it, the first one first.

    Returns:
        Each exception with the sentence that connects it to the one before.
    """
    chain: list[tuple[BaseException, str]] = []
    each: BaseException | None = exception
    while (
        each is not None
        and len(chain) < MAX_EXCEPTIONS_AND_NOTES
        and all(each is not e for e, _ in chain)
    ):
        cause, context = _read_attribute(each, "__cause__"), _read_attribute(each, "__context__")
        if cause is not None:
            following, connection = cause, _CAUSE_SENTENCE
        elif context is not None and not _read_attribute(each, "__suppress_context__"):
            following, connection = context, _CONTEXT_SENTENCE
        else:
            following, connection = None, ""
        chain.append((each, connection))
        each = following if issubclass(type(following), BaseException) else None
    return chain[::-1]


def _parts_of_group(exception: BaseException) -> tuple[BaseException, ...]:
    """Return the exceptions of a group, those of groups in it included."""
    found: list[BaseException] = []
    groups = [exception]
    while groups and len(found) < MAX_EXCEPTIONS_AND_NOTES:
        parts = _read_attribute(groups.pop(0), "exceptions")
        if type(parts) is tuple:
            exceptions = [part for part in parts if issubclass(type(part), BaseException)]
            found.extend(exceptions)
            groups.extend(exceptions)
    return tuple(found[:MAX_EXCEPTIONS_AND_NOTES])


_TRACEBACK_HEADER = "Traceback (most recent call last):\n"
_STACK_LINE_PATTERN = re.compile(r'  File "|  \[Previous line repeated |\s*[\^~ ]+$')
"""Of a stack trace: a frame, a number of equal frames, or a line of markers."""
_CAUSE_SENTENCE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT_SENTENCE = "\nDuring handling of the above exception, another exception occurred:\n\n"
