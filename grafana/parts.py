"""Parts of the dashboards: colours, texts of states, and one function for each kind of panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    heatmap,
    loki,
    prometheus,
    stat,
    statetimeline,
    table,
    tempo,
    timeseries,
)
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common, dashboard, units
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import loki as loki_models
from grafana_foundation_sdk.models import tempo as tempo_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

import promql

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
TRACES = common.DataSourceRef(type_val="tempo", uid="${traces}")
LOGS = common.DataSourceRef(type_val="loki", uid="${logs}")

# Okabe and Ito's palette, which colour-blind people can distinguish, and which stands out on dark
# and on light. Still, colour is never the only difference: states have words and symbols, and
# lines have styles.
GOOD, BAD, WARNING, INFO, OTHER, GREY = (
    *("#009E73", "#D55E00", "#F5B800", "#0072B2", "#CC79A7", "#8E8E8E"),
)
SKY = "#56B4E9"

OUTCOMES = {
    "success": GOOD,
    "error": BAD,
    "lost": OTHER,
    "missed": WARNING,
    "skipped": SKY,
    "coalesced": INFO,
}
OUTCOMES_EXPLAINED = (
    "Error: the job raised an exception. Lost: the result never arrived. Missed: the run was too"
    " late, and APScheduler dropped it. Skipped: earlier runs were still in progress. Coalesced:"
    " merged into a later run."
)
STATES = {
    promql.STUCK: ("✖ Stuck", BAD),
    promql.MISSED: ("✖ Missed", BAD),
    promql.DOWN: ("✖ Down", BAD),
    promql.FAILING: ("✖ Failing", BAD),
    promql.DROPPING: ("▲ Dropping", WARNING),
    promql.RUNNING: ("▶ Running", INFO),
    promql.PAUSED: ("‖ Paused", WARNING),
    promql.WAITING: ("● Waiting", GOOD),
    promql.IDLE: ("– Idle", GREY),
}
ACTIVITIES = {
    promql.OVERDUE: ("✖ Due, not started", OTHER),
    promql.FAILED: ("✖ Failed", BAD),
    promql.DROPPED: ("▲ Dropped", WARNING),
    promql.SUCCEEDED: ("● Ran", GOOD),
    promql.IN_PROGRESS: ("▶ Running", INFO),
    promql.NOTHING: ("– Nothing due", GREY),
}
SCHEDULER_STATES = {
    3: ("✖ Gone", BAD),
    2: ("✖ Loop dead", BAD),
    1: ("‖ Paused", WARNING),
    0: ("● Up", GOOD),
}
SCHEDULER_STATES_EXPLAINED = (
    "Up: the loop is alive. Loop dead: the process answers, but no job will run until it is"
    " restarted. Gone: the process is no longer scraped, and its jobs have next runs."
)
SEVERITIES = {
    sign: (sign, color)
    for sign, color in zip(promql.SEVERITIES.values(), (BAD, WARNING, INFO), strict=True)
}

DASHES = {"limit": [10, 10], "p99": [4, 4], "short": [2, 4], "long": [16, 6]}

Step = tuple[float | None, str]
SPARKS = 30
"""Points of a sparkline: as many as a cell can show, and few enough for hundreds of jobs."""
FEW = 60
"""Points of lines that each sum hundreds of series."""
NEUTRAL: tuple[Step, ...] = ((None, "text"),)
"""Thresholds of values that are neither good nor bad."""


LETTERS = "ABCDEFGHIJKLMNOP"


@dataclass(frozen=True)
class Query:
    """A query of metrics, in PromQL."""

    expr: str
    legend: str = ""
    instant: bool = False
    format: PromQueryFormat = PromQueryFormat.TIME_SERIES
    exemplar: bool = False
    source = SOURCE

    def target(self) -> Any:
        """Return the query as a panel has it."""
        target = (
            prometheus.Dataquery()
            .expr(self.expr)
            .format(self.format)
            .legend_format(self.legend or "__auto")
        )
        target = target.instant() if self.instant else target.range()
        return target.exemplar(self.exemplar)


@dataclass(frozen=True)
class TraceQuery:
    """A query of spans, in TraceQL."""

    query: str
    limit: int
    source = TRACES

    def target(self) -> Any:
        """Return the query as a panel has it."""
        return (
            tempo.Dataquery()
            .query_type("traceql")
            .query(self.query)
            .limit(self.limit)
            .spss(1)
            .table_type(tempo_models.SearchTableType.SPANS)
            .filters([])
        )


@dataclass(frozen=True)
class LogQuery:
    """A query of log records, in LogQL; the data source limits how many it returns."""

    expr: str
    source = LOGS

    def target(self) -> Any:
        """Return the query as a panel has it."""
        return (
            loki.Dataquery()
            .query_type("range")
            .editor_mode(loki_models.QueryEditorMode.CODE)
            .expr(self.expr)
        )


def table_query(expr: str) -> Query:
    """Return a query for the rows of a table."""
    return Query(expr, instant=True, format=PromQueryFormat.TABLE)


def finish(
    panel: Any,
    title: str,
    description: str,
    queries: Sequence[Query | TraceQuery | LogQuery],
    *,
    unit: str,
    no_value: str,
    steps: Sequence[Step],
    mappings: Sequence[dashboard.ValueMapping] = (),
    links: Sequence[tuple[str, str]] = (),
) -> Any:
    """Give a panel what every panel has, and return it; its queries are of one data source."""
    source = queries[0].source
    panel.title(title).description(description).datasource(source)
    panel.targets(
        [
            query.target().ref_id(name).datasource(source)
            for name, query in zip(LETTERS, queries, strict=False)
        ]
    )
    panel.unit(unit).no_value(no_value)
    panel.thresholds(
        builders.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value=value, color=color) for value, color in steps])
    )
    if mappings:
        panel.mappings(list(mappings))
    if links:
        panel.data_links([builders.DashboardLink(name).url(url) for name, url in links])
    return panel


def to_scheduler(application: str, scheduler: str) -> str:
    """Return the address of a scheduler's dashboard, with these values of its variables."""
    return (
        "/d/apscheduler-scheduler?${datasource:queryparam}"
        f"&var-application={application}&var-scheduler={scheduler}&${{__url_time_range}}"
    )


def words(meanings: dict[Any, tuple[str, str]], offset: int = 0) -> dashboard.ValueMap:
    """Return the mapping that shows codes, or labels, as words and colours."""
    return dashboard.ValueMap(
        options={
            str(code + offset if offset else code): dashboard.ValueMappingResult(
                text=text, color=color, index=index
            )
            for index, (code, (text, color)) in enumerate(meanings.items())
        }
    )


def paint(pattern: str, color: str) -> dashboard.RegexMap:
    """Return the mapping that sets the colour of texts that match."""
    return dashboard.RegexMap(
        options=dashboard.DashboardRegexMapOptions(
            pattern=pattern, result=dashboard.ValueMappingResult(color=color)
        )
    )


AS_IT_IS = dashboard.RegexMap(
    options=dashboard.DashboardRegexMapOptions(
        pattern="/^(.*)$/s", result=dashboard.ValueMappingResult(text="$1")
    )
)
"""
Shows text unchanged.

Otherwise a job with the id 42 would be shown as 42 s, because the unit of the table is seconds.
"""

NO_NUMBER = dashboard.SpecialValueMap(
    options=dashboard.DashboardSpecialValueMapOptions(
        match=dashboard.SpecialValueMatch.NA_N, result=dashboard.ValueMappingResult(text="–")
    )
)


def override(panel: Any, names: Sequence[str], **properties: Any) -> None:
    """
    Set properties of some series or columns only.

    In the JSON schema of Grafana's dashboards, the value of an override and the options of a
    matcher are objects. Grafana accepts other types, but that schema does not. So columns are
    selected by `byNames`, and only properties that are objects can be set.
    """
    panel.with_override(
        dashboard.MatcherConfig(
            id_val="byNames", options={"mode": "include", "names": list(names)}
        ),
        [
            dashboard.DynamicConfigValue(id_val=name.replace("__", "."), value=value)
            for name, value in properties.items()
        ],
    )


def color_of(panel: Any, name: str, color: str, dash: str | None = None) -> None:
    """Set the colour and the style of a series."""
    properties: dict[str, Any] = {"color": {"mode": "fixed", "fixedColor": color}}
    if dash:
        properties["custom__lineStyle"] = {"fill": "dash", "dash": DASHES[dash]}
    override(panel, [name], **properties)


def tiles(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str = units.NoUnit,
    no_value: str,
    steps: Sequence[Step] = NEUTRAL,
    mappings: Sequence[dashboard.ValueMapping] = (),
    links: Sequence[tuple[str, str]] = (),
    names: bool = False,
    plain: bool = False,
    size: int = 0,
) -> Any:
    """Return a panel of big numbers, or words, on a coloured background unless it is `plain`."""
    panel = (
        stat.Panel()
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.BACKGROUND_SOLID)
        .justify_mode(common.BigValueJustifyMode.CENTER)
        .text_mode(
            common.BigValueTextMode.VALUE_AND_NAME if names else common.BigValueTextMode.VALUE
        )
        .orientation(common.VizOrientation.AUTO)
        .wide_layout(True)  # noqa: FBT003  # the builder's way
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))  # noqa: FBT003
    )
    if plain:
        panel.color_mode(common.BigValueColorMode.VALUE)
    if size:
        panel.text(common_builders.VizTextDisplayOptions().title_size(13).value_size(size))
    return finish(
        panel,
        title,
        description,
        queries,
        unit=unit,
        no_value=no_value,
        steps=steps,
        mappings=mappings,
        links=links,
    )


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str = units.Short,
    no_value: str,
    steps: Sequence[Step] = NEUTRAL,
    area: bool = False,
    bars: bool = False,
    logarithmic: bool = False,
    floor: float | None = 0,
    ceiling: float | None = None,
    shades: str = "",
    inline: bool = False,
    points: int = 0,
    calcs: Sequence[str] = ("lastNotNull", "max"),
    interval: str = "",
    links: Sequence[tuple[str, str]] = (),
) -> Any:
    """Return a panel of lines, or bars, over time."""
    marked = len(steps) > 1
    panel = (
        timeseries.Panel()
        .draw_style(common.GraphDrawStyle.BARS if bars else common.GraphDrawStyle.LINE)
        .line_width(1 if bars else 2)
        .fill_opacity(80 if bars else 8 if area else 0)
        .line_interpolation(common.LineInterpolation.LINEAR)
        .show_points(common.VisibilityMode.AUTO)
        .point_size(5)
        .span_nulls(False)  # noqa: FBT003
        .thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(
                common.GraphThresholdsStyleMode.DASHED
                if marked
                else common.GraphThresholdsStyleMode.OFF
            )
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(
                common.LegendDisplayMode.LIST if inline else common.LegendDisplayMode.TABLE
            )
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)  # noqa: FBT003
            .calcs(list(calcs))
        )
    )
    if bars:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if floor is not None:
        panel.axis_soft_min(floor)
    if ceiling is not None:
        panel.axis_soft_max(ceiling)
    if logarithmic:
        panel.scale_distribution(
            common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        )
    if interval:
        panel.interval(interval)
    if points:
        panel.max_data_points(points)
    if shades:
        color = builders.FieldColor().mode(dashboard.FieldColorModeId.SHADES).fixed_color(shades)
    else:
        color = builders.FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC)
    panel.color_scheme(color)
    return finish(
        panel,
        title,
        description,
        queries,
        unit=unit,
        no_value=no_value,
        steps=steps,
        links=links,
    )


def outcomes_of(panel: Any) -> Any:
    """Set the colour of each outcome, and the styles of failures."""
    for outcome, color in OUTCOMES.items():
        dash = {"error": None, "lost": "short", "missed": "long", "skipped": "limit"}.get(outcome)
        color_of(panel, outcome, color, dash)
    return panel


def runs_by_outcome(title: str, description: str, selector: str, **options: Any) -> Any:
    """Return the runs by outcome over time; the options are those of `lines`."""
    runs = promql.increase(f"apscheduler_job_runs_total{{{selector}}}", "$__rate_interval")
    panel = lines(
        title,
        f"{description} {OUTCOMES_EXPLAINED}",
        [Query(f"sum by (outcome) ({runs}) > 0", "{{outcome}}")],
        unit=units.Short,
        no_value="no runs in the time range",
        bars=True,
        ceiling=1,
        inline=True,
        calcs=("max",),
        interval="1m",
        **options,
    )
    return outcomes_of(panel)


def plain_table() -> Any:
    """Return a table that can be filtered, with small rows."""
    return (
        table.Panel()
        .show_header(True)  # noqa: FBT003
        .cell_height(common.TableCellHeight.SM)
        .align(common.FieldTextAlignment.LEFT)
        .min_width(60)
        .filterable(True)  # noqa: FBT003
    )


def history(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    no_value: str,
    mappings: Sequence[dashboard.ValueMapping],
    points: int,
    links: Sequence[tuple[str, str]] = (),
) -> Any:
    """Return a panel of bands over time, whose states are words."""
    panel = (
        statetimeline.Panel()
        .merge_values(True)  # noqa: FBT003
        .show_value(common.VisibilityMode.AUTO)
        .align_value(common.TimelineValueAlignment.LEFT)
        .row_height(0.85)
        .fill_opacity(85)
        .line_width(1)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.LIST)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(False)  # noqa: FBT003  # the bands contain the words
        )
        .tooltip(
            common_builders.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.NONE)
        )
        .color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    )
    panel.max_data_points(points)
    return finish(
        panel,
        title,
        description,
        queries,
        unit=units.NoUnit,
        no_value=no_value,
        steps=NEUTRAL,
        mappings=mappings,
        links=links,
    )


def conversion(columns: Sequence[str], kind: str) -> dashboard.DataTransformerConfig:
    """Return the transformation that changes the type of columns."""
    return dashboard.DataTransformerConfig(
        id_val="convertFieldType",
        options={
            "fields": {},
            "conversions": [{"targetField": name, "destinationType": kind} for name in columns],
        },
    )


def only_columns(columns: Mapping[str, str]) -> list[dashboard.DataTransformerConfig]:
    """Return the transformations that leave these columns, in order and with their titles."""
    return [
        dashboard.DataTransformerConfig(
            id_val="filterFieldsByName", options={"include": {"names": list(columns)}}
        ),
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {},
                "includeByName": {},
                "indexByName": {name: index for index, name in enumerate(columns)},
                "renameByName": dict(columns),
            },
        ),
    ]


def sorted_by(column: str, *, descending: bool = True) -> Any:
    """Return the order of a table's rows."""
    return common_builders.TableSortByFieldState().display_name(column).desc(descending)


def cells(title: str, description: str, query: Query, *, no_value: str) -> Any:
    """Return a heatmap of a histogram of seconds."""
    panel = (
        heatmap.Panel()
        .calculate(False)  # noqa: FBT003
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .fill(INFO)
            .steps(64)
            .reverse(False)  # noqa: FBT003
        )
        .cell_gap(1)
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
        .y_axis(
            heatmap.YAxisConfig()
            .unit(units.Seconds)
            .axis_placement(common.AxisPlacement.LEFT)
            .reverse(False)  # noqa: FBT003
        )
        .cell_values(heatmap.CellValues().unit(units.Short).decimals(1))
        .tooltip(
            heatmap.HeatmapTooltip()
            .mode(common.TooltipDisplayMode.SINGLE)
            .y_histogram(True)  # noqa: FBT003
            .show_color_scale(True)  # noqa: FBT003
        )
        .show_legend()
        .exemplars_color(WARNING)
        .show_value(common.VisibilityMode.NEVER)
    )
    return finish(
        panel, title, description, [query], unit=units.Short, no_value=no_value, steps=NEUTRAL
    )


def bars(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    unit: str,
    no_value: str,
    steps: Sequence[Step],
    links: Sequence[tuple[str, str]] = (),
) -> Any:
    """Return a panel of horizontal bars, one for each series."""
    panel = (
        bargauge.Panel()
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .orientation(common.VizOrientation.HORIZONTAL)
        .value_mode(common.BarGaugeValueMode.TEXT)
        .name_placement(common.BarGaugeNamePlacement.TOP)
        .show_unfilled(True)  # noqa: FBT003
        .sizing(common.BarGaugeSizing.AUTO)
        .min_viz_height(16)
        .max_viz_height(28)
        .min_viz_width(8)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False))  # noqa: FBT003
        .text(common_builders.VizTextDisplayOptions().title_size(12).value_size(14))
        .decimals(2)
        .min(0)
    )
    return finish(
        panel,
        title,
        description,
        queries,
        unit=unit,
        no_value=no_value,
        steps=steps,
        links=links,
    )


def rows(
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    columns: dict[str, str],
    unit: str = units.Seconds,
    no_value: str,
    mappings: Sequence[dashboard.ValueMapping] = (),
    painted: Sequence[str] = (),
    colored: Sequence[str] = (),
    wrapped: Sequence[str] = (),
    sparkline: str = "",
    sort: str = "",
    descending: bool = True,
    decimals: int = 1,
    links: Sequence[tuple[str, str]] = (),
) -> Any:
    """
    Return a table that joins the results of several queries.

    `columns` maps each label or ``Value #REF`` to the title of its column, in order; all others
    are left out. `painted` columns have a coloured background, `colored` ones have coloured text,
    and the text of `wrapped` ones may need a second line. `sparkline` is the letter of the query
    whose series are drawn as sparklines, each in one cell.
    """
    panel = (
        plain_table()
        .footer(common_builders.TableFooterOptions().show(False).reducer([]))  # noqa: FBT003
        .decimals(decimals)
    )
    if sort:
        panel.sort_by([sorted_by(sort, descending=descending)])
    shown = {name: title for name, title in columns.items() if name.startswith("Trend")}
    if sparkline:
        # Grafana 10.2 and older omit the letter if only one query has series.
        columns = {**columns, "Trend": columns[f"Trend #{sparkline}"]}
        panel.max_data_points(SPARKS)
        # The transformation turns every result with a time and a number into a sparkline, so the
        # numbers of all other queries are converted to text before it, and back after it.
        others = [f"Value #{letter}" for letter, _ in zip(LETTERS, queries, strict=False)]
        panel.with_transformation(conversion(others, "string"))
        panel.with_transformation(
            dashboard.DataTransformerConfig(
                id_val="timeSeriesTable", options={sparkline: {"stat": "lastNotNull"}}
            )
        )
        panel.with_transformation(conversion(others, "number"))
    if len(queries) > 1:
        panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    for transformation in only_columns(columns):
        panel.with_transformation(transformation)
    panel.color_scheme(builders.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
    for names, kind in (
        (wrapped, {"type": "auto", "wrapText": True}),
        (painted, {"type": "color-background", "mode": "basic"}),
        (colored, {"type": "color-text"}),
        (
            list(shown.values()),
            {
                "type": "sparkline",
                "hideValue": True,
                "lineWidth": 1,
                "fillOpacity": 15,
                "lineColor": INFO,
                "drawStyle": "line",
            },
        ),
    ):
        if names:
            override(panel, names, custom__cellOptions=kind)
    return finish(
        panel,
        title,
        description,
        queries,
        unit=unit,
        no_value=no_value,
        steps=NEUTRAL,
        mappings=[*mappings, AS_IT_IS],
        links=links,
    )


class Page:
    """Builds a dashboard, from left to right and from top to bottom."""

    def __init__(self, uid: str, title: str, description: str, *, since: str) -> None:
        self._dashboard = (
            builders.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags(["apscheduler"])
            .editable()
            .timezone(common.TimeZoneBrowser)
            .time(f"now-{since}", "now")
            .refresh("30s")
            .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        )
        self._y = 0
        self._id = 0

    def variables(self, *, job: bool, several: bool) -> None:
        """Add the variables; with `several`, each can have several values, and starts with all."""
        known = "apscheduler_scheduler_info|apscheduler_job:promised_run_timestamp_seconds"
        known_job = "apscheduler_job_runs_total|apscheduler_job:promised_run_timestamp_seconds"
        self._dashboard.with_variable(
            builders.DatasourceVariable("datasource")
            .label("Data source")
            .description("A Prometheus, or a compatible system.")
            .type("prometheus")
        )
        chosen = [
            (
                *("application", "Application", "Prometheus' label job."),
                f'{{__name__=~"{known}"}}, job',
            ),
            (
                *("scheduler", "Scheduler", "The name that was given to instrument()."),
                f'{{__name__=~"{known}", {promql.APPLICATION}}}, scheduler',
            ),
        ]
        if job:
            chosen.append(
                (
                    *("job_id", "Job", "The id of a job, or its function if the id is generated."),
                    f'{{__name__=~"{known_job}", {promql.SCHEDULER}}}, job_id',
                )
            )
        for name, label, description, query in chosen:
            variable = (
                builders.QueryVariable(name)
                .label(label)
                .description(description)
                .datasource(SOURCE)
                .query(f"label_values({query})")
                .definition(f"label_values({query})")
                .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
                .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
                .multi(several)
                .include_all(several)
            )
            if several:
                # Not `.+`, for which Prometheus 2 merges the lists of all existing values.
                variable.all_value(".*").current(
                    dashboard.VariableOption(text=["All"], value=["$__all"], selected=True)
                )
            self._dashboard.with_variable(variable)

    def sources(self) -> None:
        """Add the variables for the data sources of logs and traces."""
        for name, label, kind in (("logs", "Logs", "loki"), ("traces", "Traces", "tempo")):
            self._dashboard.with_variable(
                builders.DatasourceVariable(name)
                .label(label)
                .description(f"A {kind.title()} that has single runs.")
                .type(kind)
            )

    def choice(self, name: str, label: str, description: str, values: Sequence[str]) -> None:
        """Add a variable with fixed values, of which several can be chosen."""
        self._dashboard.with_variable(
            builders.CustomVariable(name)
            .label(label)
            .description(description)
            .values(",".join(values))
            .multi(True)  # noqa: FBT003
            .include_all(True)  # noqa: FBT003
            .all_value(".*")
            .current(dashboard.VariableOption(text=["All"], value=["$__all"], selected=True))
        )

    def annotations(self, jobs: str) -> None:
        """Mark starts of processes, and alerts while they fire."""
        self._dashboard.annotation(
            builders.AnnotationQuery()
            .name("Starts")
            .datasource(SOURCE)
            .enable(True)  # noqa: FBT003
            .icon_color(INFO)
            .expr(f"apscheduler_scheduler_start_timestamp_seconds{{{promql.SCHEDULER}}} * 1000")
            .step("15s")
            .title_format("Scheduler {{scheduler}} started")
            .text_format("{{job}} on {{instance}}")
            .use_value_for_time(True)  # noqa: FBT003
        )
        self._dashboard.annotation(
            builders.AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .enable(True)  # noqa: FBT003
            .icon_color(BAD)
            .expr(f'ALERTS{{{promql.ALERTS}, alertstate="firing", {jobs}}}')
            .step("60s")
            .title_format("{{alertname}} ({{severity}})")
            .text_format("{{job_id}} {{scheduler}} {{job}}")
        )

    def link(self, title: str, uid: str, *names: str) -> None:
        """Add a link to another dashboard, with the variables and the time range."""
        self._dashboard.link(
            builders.DashboardLink(title)
            .type(dashboard.DashboardLinkType.LINK)
            .icon("dashboard")
            .tooltip(f"{title}, with the same selection")
            .url(f"/d/{uid}?" + "&".join(f"${{{name}:queryparam}}" for name in names))
            .keep_time(True)  # noqa: FBT003
            .include_vars(False)  # noqa: FBT003
            .target_blank(False)  # noqa: FBT003
        )

    def heading(self, title: str) -> None:
        """Begin a section."""
        self._id += 1
        self._dashboard.with_row(
            builders.Row(title)
            .id(self._id)
            .collapsed(False)  # noqa: FBT003
            .grid_pos(dashboard.GridPos(h=1, w=24, x=0, y=self._y))
        )
        self._y += 1

    def row(self, height: int, *panels: tuple[int, Any]) -> None:
        """Add panels side by side, each with its width."""
        x = 0
        for width, panel in panels:
            self._id += 1
            panel.id(self._id)
            panel.grid_pos(dashboard.GridPos(h=height, w=width, x=x, y=self._y))
            self._dashboard.with_panel(panel)
            x += width
        self._y += height

    def build(self) -> dashboard.Dashboard:
        """Return the dashboard."""
        page: dashboard.Dashboard = self._dashboard.build()
        # The version of Grafana 10.4 and 11: older ones accept none higher, newer ones migrate it.
        page.schema_version = 39
        page.id_val = None
        return page


def to_job(application: str, scheduler: str, job: str) -> str:
    """Return the address of a job's dashboard, with these values of its variables."""
    return (
        "/d/apscheduler-job?${datasource:queryparam}"
        f"&var-application={application}&var-scheduler={scheduler}&var-job_id={job}"
        "&${__url_time_range}"
    )


def to_runs(application: str, scheduler: str, job: str, outcomes: Sequence[str] = ()) -> str:
    """Return the address of the runs of a job, with these values of its variables."""
    return (
        "/d/apscheduler-runs?${datasource:queryparam}"
        f"&var-application={application}&var-scheduler={scheduler}&var-job_id={job}"
        + "".join(f"&var-outcome={outcome}" for outcome in outcomes)
        + "&${__url_time_range}"
    )


SELECTED_JOB = [f"${{{name}:percentencode}}" for name in ("application", "scheduler", "job_id")]
"""Values of the variables of a dashboard of one job."""
_ROW = [f"${{__data.fields.{label}:percentencode}}" for label in ("job", "scheduler", "job_id")]
ROW_TO_JOB = to_job(*_ROW)
ROW_TO_RUNS = to_runs(*_ROW)
ROW_TO_SCHEDULER = to_scheduler(
    "${__data.fields.job:percentencode}", "${__data.fields.scheduler:percentencode}"
)
SERIES_TO_JOB = to_job(
    *(f"${{__field.labels.{label}:percentencode}}" for label in ("job", "scheduler", "job_id"))
)
RUNBOOK = "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main/docs/runbook.md"
