"""
Prometheus' text formats, with the text of each job cached until something happens to the job.

A scrape comes every 15 seconds, and most jobs have not run since the previous one. Their text is
joined as it is; `benchmarks/scrapes.py` measures what that saves. The bytes equal those of the
encoders of `prometheus_client`, which also write the HELP and TYPE lines; a test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from prometheus_client.utils import floatToGoString

from apscheduler_telemetry.core.records import JobSnapshot
from apscheduler_telemetry.core.stats import Exemplar, Histogram
from apscheduler_telemetry.export.metric_families import (
    FAMILIES,
    JOB_FAMILIES,
    InstrumentedScheduler,
    MetricFamily,
    MetricKind,
    Sample,
    scraped_job_samples,
    yield_until_error,
)

JOBS_PER_BLOCK = 128
"""
Jobs whose text is joined at once, while no other thread runs.

For a histogram that is a quarter of a megabyte, which is copied within a millisecond. And the
number of blocks is so small that they do not make Python collect garbage, which would hold up all
threads for longer than that.
"""


HistogramLineFilter = Callable[[bytes], bytes]
"""Takes the text of one histogram, and returns some of its lines."""
_ALL_JOB_FAMILIES: Mapping[MetricFamily, HistogramLineFilter | None] = dict.fromkeys(JOB_FAMILIES)


class _CachedJobText(NamedTuple):
    """
    The text of one label.

    Attributes:
        version: of the snapshot that it shows; None if part of that failed.
        texts: the text of each of `JOB_FAMILIES`.
    """

    version: int | None
    texts: tuple[bytes, ...]


class JobTextCache:
    """
    The text of the jobs of one scheduler, in one format.

    An exception from outside, at whatever line, leaves the cache valid: text and version of a job
    are stored by one assignment.

    Args:
        error_component: the component under which failures are reported.
        with_exemplars: whether the format has exemplars.
    """

    def __init__(self, error_component: str, *, with_exemplars: bool) -> None:
        self._error_component = error_component
        self._with_exemplars = with_exemplars
        self._cached_texts_by_job_label: dict[str, _CachedJobText] = {}
        self._sorted_job_labels: Sequence[str] = ()

    def render_jobs(
        self,
        scheduler: InstrumentedScheduler,
        families: Mapping[MetricFamily, HistogramLineFilter | None] = _ALL_JOB_FAMILIES,
    ) -> Mapping[MetricFamily, Sequence[bytes]]:
        """
        Return the text of the jobs in blocks, ordered by label.

        What fails is left out, reported, and tried again the next time.

        Args:
            scheduler: the scheduler.
            families: those to return, of `JOB_FAMILIES`, each with a filter of its lines, or None
                for all of them.
        """
        cache = self._cached_texts_by_job_label
        versions = {
            label: cached.version for label, cached in cache.items() if cached.version is not None
        }
        changes = scheduler.recorder.job_snapshots_since(versions)
        labels = set()
        for label, job in yield_until_error(
            scheduler.error_reporter, self._error_component, changes
        ):
            labels.add(label)
            if job is not None:
                cache[label] = self._render_job(scheduler, job)
        for label in cache.keys() - labels:
            cache.pop(label, None)
        order = self._sorted_job_labels
        if len(order) != len(labels) or not labels.issuperset(order):
            self._sorted_job_labels = order = sorted(labels)
        # A reading by a signal's handler may have removed some meanwhile.
        texts = [cached.texts for label in order if (cached := cache.get(label)) is not None]
        blocks: dict[MetricFamily, list[bytes]] = {family: [] for family in families}
        for start in range(0, len(texts), JOBS_PER_BLOCK):
            columns = zip(*texts[start : start + JOBS_PER_BLOCK], strict=True)
            for family, column in zip(JOB_FAMILIES, columns, strict=True):
                if family in blocks:
                    filter_lines = families[family]
                    blocks[family].append(
                        b"".join(map(filter_lines, column) if filter_lines else column)
                    )
        return blocks

    def _render_job(self, scheduler: InstrumentedScheduler, job: JobSnapshot) -> _CachedJobText:
        version: int | None = job.version
        lines: dict[MetricFamily, list[str]] = {family: [] for family in JOB_FAMILIES}
        try:
            for sample in scraped_job_samples(scheduler.name, job):
                lines[sample[0]].append(render_sample(sample, with_exemplars=self._with_exemplars))
        except Exception:  # noqa: BLE001  # the rest is shown
            scheduler.error_reporter.exception(self._error_component)
            version = None
        return _CachedJobText(version, tuple("".join(each).encode() for each in lines.values()))


def histogram_line_filter(name: str, suffixes: Collection[str]) -> HistogramLineFilter:
    """
    Return a filter that keeps some of the samples of a histogram.

    Args:
        name: the name of the histogram in Prometheus.
        suffixes: which samples: ``_bucket``, ``_count`` or ``_sum``, or several of these.
    """
    # No label value contains these, as line feeds are escaped in it.
    count_line, sum_line = f"\n{name}_count{{".encode(), f"\n{name}_sum{{".encode()
    has_buckets, has_count, has_sum = (
        suffix in suffixes for suffix in ("_bucket", "_count", "_sum")
    )

    def filter_lines(text: bytes) -> bytes:
        count_at = text.rfind(count_line) + 1
        sum_at = text.rfind(sum_line) + 1
        return (
            (text[:count_at] if has_buckets else b"")
            + (text[count_at:sum_at] if has_count else b"")
            + (text[sum_at:] if has_sum else b"")
        )

    return filter_lines


def render_sample(sample: Sample, *, with_exemplars: bool) -> str:
    """Return the line of a sample, or the lines of a histogram."""
    family, values, value = sample
    escaped = [_escape_label_value(text) for text in values]
    if isinstance(value, Histogram):
        return "".join(_render_histogram(family, escaped, value, with_exemplars=with_exemplars))
    template = _LINE_TEMPLATES_BY_FAMILY[family]
    return f"{template.format_sample_start(*escaped)}{_format_go_float(value)}\n"


def _render_histogram(
    family: MetricFamily, labels: list[str], histogram: Histogram, *, with_exemplars: bool
) -> Iterator[str]:
    template = _LINE_TEMPLATES_BY_FAMILY[family]
    start, end = template.format_bucket_before_le(*labels), template.format_bucket_after_le(*labels)
    total = 0
    for le, (total, exemplar) in zip(
        format_bucket_bounds(histogram), histogram.cumulative_buckets(), strict=True
    ):
        tail = _format_exemplar(exemplar) if with_exemplars and exemplar is not None else ""
        yield f"{start}{le}{end}{_format_go_float(total)}{tail}\n"
    yield f"{template.format_count_start(*labels)}{_format_go_float(total)}\n"
    yield f"{template.format_sum_start(*labels)}{_format_go_float(histogram.sum)}\n"


class _LineTemplates:
    """Format the lines of a family up to the value, from the values of its labels."""

    def __init__(self, family: MetricFamily) -> None:
        name, labels = family.prometheus_family_name, family.labels
        all_labels = _label_template(labels, sorted(labels))
        sample = f"{name}_total" if family.kind is MetricKind.COUNTER else name
        self.format_sample_start = f"{sample}{{{{{all_labels}}}}} ".format
        self.format_count_start = f"{name}_count{{{{{all_labels}}}}} ".format
        self.format_sum_start = f"{name}_sum{{{{{all_labels}}}}} ".format
        # Labels are sorted, and `le` is one of them.
        before = _label_template(labels, [label for label in sorted(labels) if label < "le"])
        after = _label_template(labels, [label for label in sorted(labels) if label > "le"])
        self.format_bucket_before_le = f'{name}_bucket{{{{{before},le="'.format
        self.format_bucket_after_le = f'",{after}}}}} '.format


def _label_template(labels: Sequence[str], shown: Iterable[str]) -> str:
    """Return the labels that are shown, as a format string for the values of all labels."""
    return ",".join(f'{label}="{{{labels.index(label)}}}"' for label in shown)


def _format_go_float(value: float) -> str:
    if type(value) is int and 0 <= value < _EXPONENT_THRESHOLD:  # as most values are
        return f"{value}.0"
    number: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return number


def _escape_label_value(text: str) -> str:
    if "\\" in text or "\n" in text or '"' in text:
        return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return text


def _format_exemplar(exemplar: Exemplar) -> str:
    labels = ",".join(f'{k}="{_escape_label_value(v)}"' for k, v in sorted(exemplar.labels.items()))
    return f" # {{{labels}}} {_format_go_float(exemplar.value)} {exemplar.timestamp}"


def format_bucket_bounds(histogram: Histogram) -> Sequence[str]:
    """Return the values of ``le``, in the order of the buckets."""
    return _format_bounds(tuple(histogram.bounds))


@lru_cache(maxsize=16)  # each scheduler has two
def _format_bounds(bounds: tuple[float, ...]) -> Sequence[str]:
    return [_format_go_float(bound) for bound in (*bounds, float("inf"))]


_EXPONENT_THRESHOLD = 1_000_000  # from which on Go, and floatToGoString, write an exponent
_LINE_TEMPLATES_BY_FAMILY = {family: _LineTemplates(family) for family in FAMILIES}
