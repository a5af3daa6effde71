// Draws a dashboard with Grafana's own components: values, units, mappings, overrides,
// transformations, tables, numbers, bars, legends and lines are those of @grafana/data and
// @grafana/ui. What is not published there (the bands, the heatmap, the page) is drawn here.
import '@fontsource/inter/400.css';
import '@fontsource/inter/500.css';
import React from 'react';
import { createRoot } from 'react-dom/client';
import * as data from '@grafana/data';
import * as ui from '@grafana/ui';

const { FieldType } = data;
const { dashboard, results, range, zone, width: full, links, chosen } = window.DATA;
const dark = location.hash !== '#light';
const theme = data.createTheme({ colors: { mode: dark ? 'dark' : 'light' } });
const WIDTH = full - 32, CELL = 30, GAP = 8;
const identity = (text) => text;

const property = (id, path = id, isCustom = false) => ({
  id: isCustom ? `custom.${id}` : id, path, isCustom, name: id,
  process: identity, shouldApply: () => true, settings: {},
});
const registry = new data.Registry(() => [
  ...['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'thresholds', 'mappings', 'links', 'color']
    .map((id) => property(id)),
  ...['cellOptions', 'align', 'minWidth', 'width', 'filterable', 'inspect', 'lineStyle', 'lineWidth', 'fillOpacity',
    'drawStyle', 'lineInterpolation', 'showPoints', 'pointSize', 'spanNulls', 'stacking', 'thresholdsStyle',
    'axisSoftMin', 'scaleDistribution'].map((id) => property(id, id, true)),
]);

// Two transformations are of Grafana's application, not of its libraries: "Extract fields"...
const extracted = (frames, { source }) => frames.map((frame) => {
  const rows = frame.fields.find((field) => field.name === source).values;
  const names = [...new Set(rows.flatMap(Object.keys))];
  return data.createDataFrame({ ...frame, fields: [...frame.fields, ...names.map((name) => (
    { name, type: FieldType.string, config: {}, values: rows.map((row) => row[name]) }))] });
});
// ... and "Time series to table".
const toTable = (frames, refId) => {
  const series = frames.filter((frame) => frame.refId === refId);
  if (!series.length) { return frames; }
  const labels = Object.keys(series[0].fields[1].labels ?? {});
  const table = data.createDataFrame({
    refId,
    fields: [
      ...labels.map((name) => ({ name, type: FieldType.string, config: {}, values: series.map((s) => s.fields[1].labels[name]) })),
      { name: `Trend #${refId}`, type: FieldType.frame, config: {},
        values: series.map((s) => ({ ...s, value: s.fields[1].values.at(-1), length: s.length })) },
    ],
  });
  return [...frames.filter((frame) => frame.refId !== refId), table];
};
data.standardTransformersRegistry.setInit(() =>
  [...new Map(Object.values(data.standardTransformers).map((one) => [one.id, one])).values()].map((transformation) => ({
    id: transformation.id, name: transformation.name, transformation, editor: () => null,
  })));

const labelled = (legend, labels) =>
  legend === '__auto' ? Object.entries(labels).map(([k, v]) => `${k}="${v}"`).join(', ') || 'Value'
    : legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');

function framesOf(panel) {
  const several = panel.targets.length > 1;
  return panel.targets.flatMap((target) => {
    const series = results[panel.id][target.refId];
    if (target.datasource.type !== 'prometheus') { return [data.createDataFrame(series)]; }
    if (target.format === 'table') {
      if (!series.length) { return []; }
      const names = [...new Set(series.flatMap((s) => Object.keys(s.metric)))].sort();
      return [data.createDataFrame({ refId: target.refId, fields: [
        { name: 'Time', type: FieldType.time, config: {}, values: series.map((s) => s.values[0][0] * 1000) },
        ...names.map((name) => ({ name, type: FieldType.string, config: { filterable: true }, values: series.map((s) => s.metric[name]) })),
        { name: several ? `Value #${target.refId}` : 'Value', type: FieldType.number, config: {}, values: series.map((s) => Number(s.values[0][1])) },
      ] })];
    }
    return series.map((s) => data.createDataFrame({ refId: target.refId, fields: [
      { name: 'Time', type: FieldType.time, config: {}, values: s.values.map((v) => v[0] * 1000) },
      { name: 'Value', type: FieldType.number, labels: s.metric,
        config: { displayNameFromDS: labelled(target.legendFormat, s.metric) },
        values: s.values.map((v) => (v[1] === 'NaN' ? null : Number(v[1]))) },
    ] }));
  });
}

async function prepared(panel) {
  let frames = framesOf(panel);
  for (const config of panel.transformations ?? []) {
    if (config.id === 'timeSeriesTable') {
      for (const refId of new Set(frames.filter(data.isTimeSeriesFrame).map((frame) => frame.refId))) { frames = toTable(frames, refId); }
      continue;
    }
    if (config.id === 'extractFields') {
      frames = extracted(frames, config.options);
      continue;
    }
    frames = await new Promise((done) => data.transformDataFrame([config], frames).subscribe(done));
  }
  return data.applyFieldOverrides({
    data: frames, fieldConfig: panel.fieldConfig, fieldConfigRegistry: registry,
    replaceVariables: identity, theme, timeZone: zone,
  });
}

const axisTime = (width) => {
  const steps = [30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400];
  const step = steps.find((s) => ((range.to - range.from) / s) * 70 < width) ?? 86400;
  const ticks = [];
  for (let t = Math.ceil(range.from / step) * step; t <= range.to; t += step) { ticks.push(t); }
  return ticks.map((t) => [t, data.dateTimeFormat(t * 1000, { timeZone: zone, format: step < 60 ? 'HH:mm:ss' : 'HH:mm' })]);
};

function NoData({ panel, height }) {
  return <div style={{ height, display: 'flex', alignItems: 'center', justifyContent: 'center', color: theme.colors.text.secondary }}>
    {panel.fieldConfig.defaults.noValue}</div>;
}

function Numbers({ panel, frames, width, height }) {
  const { options } = panel;
  const values = data.getFieldDisplayValues({ fieldConfig: panel.fieldConfig, reduceOptions: options.reduceOptions,
    replaceVariables: identity, theme, data: frames, sparkline: false, timeZone: zone });
  const count = values.length;
  return <ui.VizRepeater width={width} height={height} source={{}} getValues={() => values} renderCounter={0}
    orientation={options.orientation} autoGrid minVizWidth={0}
    renderValue={({ value, width: w, height: h }) => <ui.BigValue value={value.display} width={w} height={h} theme={theme}
      colorMode={options.colorMode} graphMode="none" justifyMode={options.justifyMode} textMode={options.textMode}
      text={options.text} count={count} alignmentFactors={undefined} wideLayout={options.wideLayout} />} />;
}

function Bars({ panel, frames, width, height }) {
  const { options } = panel;
  const values = data.getFieldDisplayValues({ fieldConfig: panel.fieldConfig, reduceOptions: options.reduceOptions,
    replaceVariables: identity, theme, data: frames, sparkline: false, timeZone: zone });
  const most = Math.max(...values.map((v) => v.display.numeric));
  return <ui.VizRepeater width={width} height={height} source={{}} getValues={() => values} renderCounter={0}
    orientation={options.orientation} itemSpacing={6} minVizHeight={options.minVizHeight} maxVizHeight={options.maxVizHeight}
    getAlignmentFactors={(all) => data.getDisplayValueAlignmentFactors(all)}
    renderValue={({ value, width: w, height: h, alignmentFactors }) => <ui.BarGauge value={value.display} width={w} height={h} theme={theme}
      field={{ ...value.field, max: value.field.max ?? most }} orientation={options.orientation} displayMode={options.displayMode} text={options.text}
      display={value.view ? value.view.getFieldDisplayProcessor(value.colIndex) : undefined} itemSpacing={6} lcdCellWidth={8}
      showUnfilled={options.showUnfilled} valueDisplayMode={options.valueMode} namePlacement={options.namePlacement} alignmentFactors={alignmentFactors} />} />;
}

function Rows({ panel, frames, width, height }) {
  return <ui.Table data={frames[0]} width={width} height={height} showTypeIcons={false} cellHeight={panel.options.cellHeight}
    initialSortBy={panel.options.sortBy} enablePagination={false} timeRange={timeRange()} ariaLabel={panel.title} />;
}
const timeRange = () => {
  const [from, to] = [range.from, range.to].map((t) => data.dateTime(t * 1000));
  return { from, to, raw: { from, to } };
};

function Lines({ panel, frames, width, height }) {
  const custom = panel.fieldConfig.defaults.custom;
  const joined = data.outerJoinDataFrames({ frames });
  const numbers = joined.fields.slice(1);
  const stacked = custom.stacking?.mode === 'normal';
  const names = numbers.map((f) => f.config.displayNameFromDS);
  const xs = joined.fields[0].values;
  let sums = xs.map(() => 0);
  const ys = numbers.map((field) => field.values.map((v, i) => (v === undefined ? null : v)));
  const drawn = stacked ? ys.map((values) => { sums = sums.map((sum, i) => sum + (values[i] ?? 0)); return [...sums]; }) : ys;
  const builder = new ui.UPlotConfigBuilder(zone);
  const log = custom.scaleDistribution?.type === 'log';
  const thresholds = panel.fieldConfig.defaults.thresholds;
  builder.setPadding([8, 20, 0, 4]); // for the last time and the longest number, which would be cut
  builder.addScale({ scaleKey: 'x', isTime: true, orientation: 0, direction: 1, range: () => [range.from * 1000, range.to * 1000] });
  builder.addScale({ scaleKey: 'y', orientation: 1, direction: 1, softMin: custom.axisSoftMin, softMax: custom.axisSoftMax, distribution: log ? 'log' : 'linear', log: 10 });
  builder.addAxis({ scaleKey: 'x', isTime: true, placement: 'bottom', timeZone: zone, theme, grid: { show: true } });
  const format = numbers[0].display;
  builder.addAxis({ scaleKey: 'y', placement: 'left', theme, formatValue: (v) => data.formattedValueToString(format(v)) });
  if (custom.thresholdsStyle?.mode !== 'off' && thresholds.steps.length > 1) {
    builder.addThresholds({ scaleKey: 'y', thresholds: { ...thresholds, steps: thresholds.steps.map((s, i) => ({ ...s, value: i ? s.value : -Infinity })) },
      theme, config: custom.thresholdsStyle, hardMin: undefined, hardMax: undefined, softMin: undefined, softMax: undefined });
  }
  const order = numbers.map((_, i) => i);
  if (stacked) { order.reverse(); }
  const color = (field) => data.getFieldColorModeForField(field).getCalculator(field, theme)(0, 0);
  for (const i of order) {
    const c = numbers[i].config.custom ?? {};
    builder.addSeries({ scaleKey: 'y', theme, pxAlign: true, drawStyle: c.drawStyle, lineColor: color(numbers[i]), lineWidth: c.lineWidth,
      lineStyle: c.lineStyle, lineInterpolation: c.lineInterpolation, fillOpacity: stacked ? 100 : c.fillOpacity, showPoints: c.showPoints ?? 'auto',
      pointSize: c.pointSize, spanNulls: c.spanNulls, barAlignment: 0, barWidthFactor: 0.6, barMaxWidth: 200, dataFrameFieldIndex: { fieldIndex: i + 1, frameIndex: 0 } });
  }
  const items = numbers.map((field, i) => ({ label: names[i], color: color(field), yAxis: 1, lineStyle: field.config.custom?.lineStyle,
    getDisplayValues: () => panel.options.legend.calcs.map((calc) => {
      const info = data.fieldReducers.get(calc);
      const reduced = data.reduceField({ field: { ...field, state: undefined }, reducers: [calc] })[calc];
      return { ...field.display(reduced), title: info.name };
    }) }));
  const legend = Math.min(height * 0.4, 26 + 22 * items.length);
  return <div>
    <ui.UPlotChart config={builder} data={[xs, ...order.map((i) => drawn[i])]} width={width} height={height - legend} />
    <div style={{ height: legend, overflow: 'hidden' }}>
      <ui.VizLegend items={items} displayMode={panel.options.legend.displayMode} placement="bottom" isSortable={false} readonly />
    </div>
  </div>;
}

// The step of a range query: the least time between two samples.
const stepOf = (frames) => Math.min(...frames.flatMap((frame) =>
  frame.fields[0].values.slice(1).map((t, i) => t - frame.fields[0].values[i])));

function Bands({ panel, frames, width, height }) {
  const left = Math.min(280, 20 + 7 * Math.max(...frames.map((f) => f.fields[1].config.displayNameFromDS.length)));
  const bottom = 46, room = (height - bottom) / frames.length;
  const states = new Map(frames.flatMap((f) => f.fields[1].values.map((v) => [v, f.fields[1].display(v)])));
  let at = 10;
  const legend = [...states].sort(([a], [b]) => a - b).map(([, { text, color }]) => {
    const place = at;
    at += 34 + text.length * 7;
    return { text, color, place };
  });
  const x = (t) => left + ((t / 1000 - range.from) / (range.to - range.from)) * (width - left);
  const step = stepOf(frames);
  return <svg width={width} height={height} fontFamily={theme.typography.fontFamily} fontSize={12}>
    {frames.map((frame, row) => {
      const [times, field] = [frame.fields[0].values, frame.fields[1]];
      const bands = [];
      times.forEach((t, i) => {
        const last = bands.at(-1);
        if (last && last.value === field.values[i] && t - last.end <= step * 1.5) { last.end = t; return; }
        if (last && t - last.end <= step * 1.5) { last.end = t; }
        bands.push({ begin: t, end: t + step, value: field.values[i] });
      });
      return <g key={row} transform={`translate(0 ${row * room})`}>
        <text x={left - 10} y={room / 2 + 4} textAnchor="end" fill={theme.colors.text.primary}>{field.config.displayNameFromDS}</text>
        {bands.map((band, i) => {
          const shown = field.display(band.value);
          const [a, b] = [Math.max(left, x(band.begin)), Math.min(width, x(band.end))];
          return <g key={i}>
            <rect x={a} y={room * 0.075} width={Math.max(1, b - a)} height={room * 0.85} fill={shown.color} fillOpacity={0.85} stroke={shown.color} />
            {b - a > shown.text.length * 7 + 8 && <text x={a + 5} y={room / 2 + 4} fill={theme.colors.getContrastText(shown.color)}>{shown.text}</text>}
          </g>;
        })}
      </g>;
    })}
    {axisTime(width).map(([t, text]) => <text key={t} x={Math.min(width - 18, x(t * 1000))} y={height - 30} textAnchor="middle" fill={theme.colors.text.secondary}>{text}</text>)}
    {legend.map(({ text, color, place }) => <g key={place}>
      <rect x={place} y={height - 15} width={14} height={4} fill={color} />
      <text x={place + 20} y={height - 8} fill={theme.colors.text.primary}>{text}</text>
    </g>)}
  </svg>;
}

function Cells({ panel, frames, width, height }) {
  const bounds = (frame) => Number(frame.fields[1].labels.le === '+Inf' ? Infinity : frame.fields[1].labels.le);
  const sorted = [...frames].sort((a, b) => bounds(a) - bounds(b));
  const counts = sorted.map((frame, row) => {
    const below = row ? new Map(sorted[row - 1].fields[0].values.map((t, i) => [t, sorted[row - 1].fields[1].values[i]])) : new Map();
    return frame.fields[0].values.map((t, i) => [t, Math.max(0, frame.fields[1].values[i] - (below.get(t) ?? 0))]);
  });
  const used = counts.map((c, i) => (c.some(([, n]) => n > 1e-9) ? i : -1)).filter((i) => i >= 0);
  if (!used.length) { return <NoData panel={panel} height={height} />; }
  const [low, high] = [Math.max(0, used[0] - 1), Math.min(sorted.length - 1, used.at(-1) + 1)];
  const most = Math.max(...counts.flat().map(([, n]) => n));
  const step = stepOf(frames);
  const left = 60, bottom = 22, room = (height - bottom) / (high - low + 1);
  const x = (t) => left + ((t / 1000 - range.from) / (range.to - range.from)) * (width - left);
  const format = data.getValueFormat('s');
  const shades = dark ? ['#08306b', '#08519c', '#2171b5', '#4292c6', '#6baed6', '#9ecae1', '#c6dbef', '#deebf7'] : ['#deebf7', '#c6dbef', '#9ecae1', '#6baed6', '#4292c6', '#2171b5', '#08519c', '#08306b'];
  return <svg width={width} height={height} fontFamily={theme.typography.fontFamily} fontSize={12}>
    {counts.slice(low, high + 1).map((cells, i) => {
      const y = height - bottom - (i + 1) * room;
      const le = bounds(sorted[low + i]);
      return <g key={i}>
        <text x={left - 8} y={y + 4} textAnchor="end" fill={theme.colors.text.secondary}>{le === Infinity ? '∞' : data.formattedValueToString(format(le))}</text>
        <line x1={left} x2={width} y1={y} y2={y} stroke={theme.colors.border.weak} />
        {cells.filter(([, n]) => n > 1e-9).map(([t, n]) => <rect key={t} x={x(t) + 0.5} y={y + 0.5} height={room - 1}
          width={Math.max(1, x(t + step) - x(t) - 1)} fill={shades[Math.min(7, Math.floor(8 * Math.sqrt(n / most)))]} />)}
      </g>;
    })}
    {axisTime(width).map(([t, text]) => <text key={t} x={x(t * 1000)} y={height - 6} textAnchor="middle" fill={theme.colors.text.secondary}>{text}</text>)}
  </svg>;
}

const KINDS = { stat: Numbers, table: Rows, timeseries: Lines, 'state-timeline': Bands, heatmap: Cells, bargauge: Bars };

function Panel({ panel, frames, width, height }) {
  const Kind = KINDS[panel.type];
  return <ui.PanelChrome title={panel.title} width={width} height={height} padding={panel.type === 'table' ? 'sm' : 'sm'}>
    {(w, h) => (frames.length && frames.some((f) => f.length) ? <Kind panel={panel} frames={frames} width={w} height={h} /> : <NoData panel={panel} height={h} />)}
  </ui.PanelChrome>;
}

function Page({ all }) {
  const unit = (WIDTH + GAP) / 24;
  const bottom = Math.max(...dashboard.panels.map((p) => p.gridPos.y + p.gridPos.h)) * (CELL + GAP);
  return <div style={{ position: 'relative', width: full, height: bottom + 110, background: theme.colors.background.canvas, color: theme.colors.text.primary }}>
    <div style={{ padding: '14px 16px 0', fontSize: 16 }}>{dashboard.title}
      <span style={{ float: 'right', fontSize: 13, color: theme.colors.text.secondary }}>{links}</span></div>
    <div style={{ padding: '10px 16px', display: 'flex', gap: 10 }}>
      {chosen.map(([label, value]) => <div key={label} style={{ display: 'flex', height: 32, fontSize: 12, border: `1px solid ${theme.colors.border.medium}`, borderRadius: 2 }}>
        <span style={{ padding: '7px 8px', background: theme.colors.background.secondary }}>{label}</span>
        <span style={{ padding: '7px 8px', background: theme.components.input.background }}>{value} ▾</span></div>)}
    </div>
    <div style={{ position: 'absolute', top: 92, left: 16 }}>
      {dashboard.panels.map((panel) => {
        const { x, y, w, h } = panel.gridPos;
        const box = { position: 'absolute', left: x * unit, top: y * (CELL + GAP), width: w * unit - GAP, height: h * (CELL + GAP) - GAP };
        return <div key={panel.id} style={box}>{panel.type === 'row'
          ? <div style={{ padding: '6px 4px', fontWeight: 500 }}>⌄ {panel.title}</div>
          : <Panel panel={panel} frames={all[panel.id]} width={box.width} height={box.height} />}</div>;
      })}
    </div>
  </div>;
}

async function main() {
  const all = {};
  for (const panel of dashboard.panels.filter((p) => p.type !== 'row')) { all[panel.id] = await prepared(panel); }
  document.body.style.margin = 0;
  await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 12px Inter`)));
  createRoot(document.getElementById('root')).render(
    <data.ThemeContext.Provider value={theme}><ui.GlobalStyles /><Page all={all} /></data.ThemeContext.Provider>);
}
main().catch((error) => { document.getElementById('root').innerText = error.stack; });
