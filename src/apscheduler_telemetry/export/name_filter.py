"""
Restrict finished lines of the text formats to samples of given names, as ``?name[]=`` asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from apscheduler_telemetry.export.metric_families import FAMILIES, Family, Kind

LineFilter = Callable[[bytes], bytes]
"""Takes the lines of one histogram, and returns those of some of its samples."""

_SUFFIXES = {
    Kind.COUNTER: ("_total",),
    Kind.GAUGE: ("",),
    Kind.LOAD: ("",),
    Kind.HISTOGRAM: ("_bucket", "_count", "_sum"),
}


def create_line_filters(names: AbstractSet[str]) -> Mapping[Family, LineFilter | None]:
    """
    Create the filters that restrict the cached lines to samples of given names.

    Args:
        names: of samples, such as ``apscheduler_job_start_delay_seconds_sum``.

    Returns:
        A filter for each family that has samples of these names, in the order of `FAMILIES`; None
        if all of its samples have one.
    """
    filters: dict[Family, LineFilter | None] = {}
    for family in FAMILIES:
        name = family.prometheus_name
        suffixes = [suffix for suffix in _SUFFIXES[family.kind] if f"{name}{suffix}" in names]
        if len(suffixes) == len(_SUFFIXES[family.kind]):
            filters[family] = None
        elif suffixes:  # of a histogram, as samples of other kinds have one name
            filters[family] = _create_histogram_filter(
                name,
                with_buckets="_bucket" in suffixes,
                with_count="_count" in suffixes,
                with_sum="_sum" in suffixes,
            )
    return filters


def _create_histogram_filter(
    name: str, *, with_buckets: bool, with_count: bool, with_sum: bool
) -> LineFilter:
    # Label values cannot contain these, as line feeds are escaped in them.
    count_start, sum_start = f"\n{name}_count{{".encode(), f"\n{name}_sum{{".encode()

    def filter_lines(histogram: bytes) -> bytes:
        count_at = histogram.rfind(count_start) + 1
        sum_at = histogram.rfind(sum_start) + 1
        return (
            (histogram[:count_at] if with_buckets else b"")
            + (histogram[count_at:sum_at] if with_count else b"")
            + (histogram[sum_at:] if with_sum else b"")
        )

    return filter_lines
