"""
Series as lines of Prometheus' text formats, those of jobs kept while nothing happens to them.

A scrape comes every 15 seconds, and most jobs have not run since the last. Their lines are joined
as they are; `benchmarks/scrapes.py` says what that buys. The bytes are those of
`prometheus_client`'s encoders: heads of families come from these, and a test compares all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from prometheus_client.utils import floatToGoString

from apscheduler_telemetry.core.recorder import Account, Exemplar, Histogram
from apscheduler_telemetry.export.metric_families import (
    FAMILIES,
    JOB_FAMILIES,
    Family,
    Kind,
    Sample,
    Source,
    of_job,
    what_can_be_had,
)
from apscheduler_telemetry.export.name_filter import LineFilter

BLOCK = 128
"""
Jobs whose lines are joined at one go, while no other thread runs.

A quarter of a megabyte of a histogram, copied within a millisecond. And so few objects that Python
does not look for garbage because of them, which would hold up all threads for longer than that.
"""


class Lines:
    """
    The lines of the jobs of one scheduler, in one format.

    Args:
        component: under what failures are counted.
        with_exemplars: whether the format has exemplars.
    """

    def __init__(self, component: str, *, with_exemplars: bool) -> None:
        self._component = component
        self._with_exemplars = with_exemplars
        self._versions: dict[str, int] = {}
        self._kept: dict[str, tuple[bytes, ...]] = {}
        self._order: list[str] = []

    def of_jobs(
        self, source: Source, filters: Mapping[Family, LineFilter | None]
    ) -> Mapping[Family, Sequence[bytes]]:
        """
        Return the lines of each family of jobs in `filters`, in blocks.

        What fails is left out, counted, and tried again.
        """
        there = set()
        changes = source.ledger.changes(self._versions)
        for label, account in what_can_be_had(source, self._component, changes):
            there.add(label)
            if account is not None:
                self._kept[label] = self._written(source, account)
        if there != self._kept.keys() or len(there) != len(self._order):
            for label in self._kept.keys() - there:
                del self._kept[label]
                self._versions.pop(label, None)
            self._order = sorted(there)
        kept = [self._kept[label] for label in self._order]
        blocks: dict[Family, list[bytes]] = {
            family: [] for family in JOB_FAMILIES if family in filters
        }
        for start in range(0, len(kept), BLOCK):
            columns = zip(*kept[start : start + BLOCK], strict=True)
            for family, column in zip(JOB_FAMILIES, columns, strict=True):
                if family in filters:
                    filter_lines = filters[family]
                    lines = map(filter_lines, column) if filter_lines else column
                    blocks[family].append(b"".join(lines))
        return blocks

    def _written(self, source: Source, account: Account) -> tuple[bytes, ...]:
        failures = source.guard.counts()[self._component]
        written: dict[Family, list[str]] = {family: [] for family in JOB_FAMILIES}
        for sample in what_can_be_had(source, self._component, of_job(source.name, account)):
            written[sample[0]].append(line(sample, with_exemplars=self._with_exemplars))
        if source.guard.counts()[self._component] == failures:
            self._versions[account.label] = account.version
        else:
            self._versions.pop(account.label, None)
        return tuple("".join(lines).encode() for lines in written.values())


def line(sample: Sample, *, with_exemplars: bool) -> str:
    """Return the line of a sample, or the lines of a histogram."""
    family, values, value = sample
    escaped = [_escaped(text) for text in values]
    if isinstance(value, Histogram):
        return "".join(_histogram(family, escaped, value, with_exemplars=with_exemplars))
    return f"{_FORMS[family].one(*escaped)}{_number(value)}\n"


def _histogram(
    family: Family, labels: list[str], histogram: Histogram, *, with_exemplars: bool
) -> Iterator[str]:
    form = _FORMS[family]
    start, end = form.bucket(*labels), form.bucket_end(*labels)
    total = 0
    for le, (total, exemplar) in zip(bounds(histogram), histogram.cumulative(), strict=True):
        tail = _exemplar(exemplar) if with_exemplars and exemplar is not None else ""
        yield f"{start}{le}{end}{_number(total)}{tail}\n"
    yield f"{form.count(*labels)}{_number(total)}\n"
    yield f"{form.sum(*labels)}{_number(histogram.sum)}\n"


class _Form:
    """How the lines of a family begin, up to the value; each is given the labels' values."""

    def __init__(self, family: Family) -> None:
        name, labels = family.prometheus_name, family.labels
        whole = _named(labels, sorted(labels))
        one = f"{name}_total" if family.kind is Kind.COUNTER else name
        self.one = f"{one}{{{{{whole}}}}} ".format
        self.count = f"{name}_count{{{{{whole}}}}} ".format
        self.sum = f"{name}_sum{{{{{whole}}}}} ".format
        # Around the value of `le`, which stands among the others.
        before = _named(labels, [label for label in sorted(labels) if label < "le"])
        after = _named(labels, [label for label in sorted(labels) if label > "le"])
        self.bucket = f'{name}_bucket{{{{{before},le="'.format
        self.bucket_end = f'",{after}}}}} '.format


def _named(labels: Sequence[str], wanted: Iterable[str]) -> str:
    return ",".join(f'{label}="{{{labels.index(label)}}}"' for label in wanted)


def _number(value: float) -> str:
    if type(value) is int and 0 <= value < _GO_EXPONENT:  # what most values are
        return f"{value}.0"
    number: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return number


def _escaped(text: str) -> str:
    if "\\" in text or "\n" in text or '"' in text:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text


def _exemplar(exemplar: Exemplar) -> str:
    inner = ",".join(f'{k}="{_escaped(v)}"' for k, v in sorted(exemplar.labels.items()))
    return f" # {{{inner}}} {_number(exemplar.value)} {exemplar.timestamp}"


def bounds(histogram: Histogram) -> Sequence[str]:
    """Return the values of ``le``, in the order of the buckets."""
    return _bounds(tuple(histogram.bounds))


@lru_cache(maxsize=16)  # two per scheduler, and hardly ever others
def _bounds(bounds: tuple[float, ...]) -> Sequence[str]:
    return [_number(bound) for bound in (*bounds, float("inf"))]


_GO_EXPONENT = 1_000_000  # from which on Go, and floatToGoString, write one
_FORMS = {family: _Form(family) for family in FAMILIES}
