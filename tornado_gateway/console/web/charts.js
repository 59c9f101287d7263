// The time charts, drawn by uPlot: one range and one cursor for all of them. Colours are the variables of console.css.

import { clock, h, rate, replace } from "./dom.js";

const { uPlot } = globalThis; // a script of its own in console.html
const RANGES = { "5m": ["5 min", 300], "1h": ["1 h", 3600], "24h": ["24 h", 86400] };
const HEIGHT = 150;
const SYNC = uPlot.sync("overview");
const TICKS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200]; // seconds between two of the time axis
const GAP = 2.5; // intervals without a sample that interrupt a line
const NEAR = 6; // pixels between the cursor and a marker whose label is shown

let range = "5m";
let markers = [];

/** The name of the range in view: a parameter of /admin/overview. */
export const shownRange = () => range;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const minutes = (at) => clock(at).slice(0, 5);

/** Buttons that choose the range of all charts. `changed` is called afterwards. */
export function rangeButtons(changed) {
  const buttons = Object.entries(RANGES).map(([name, [label]]) =>
    h("button", { type: "button", "data-range": name, "aria-pressed": String(name === range), onclick: () => choose(name) }, label),
  );
  const choose = (name) => {
    range = name;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.range === name));
    changed();
  };
  return h("div", { class: "ranges", role: "group", "aria-label": "Range of the charts" }, buttons);
}

/** Settings changes, as {at, label}: a line in each chart, with the label near the cursor. */
export function useMarkers(list) {
  markers = list ?? [];
}

/**
 * A chart of several series. `unit` follows the numbers of the axis. `lines` are {name, label, tone}; `draw` takes the
 * columns of /admin/overview and the current time.
 */
export function chart(title, caption, unit, lines) {
  const values = lines.map(() => h("span", { class: "legend-value" }, "–"));
  const big = h("span", { class: "big" }, "–");
  const at = h("span", { class: "at" });
  const box = h("div", { class: "plot-box", "aria-hidden": "true" });
  const legend = lines.map((line, index) => h("li", {}, h("i", { class: `swatch tone-${line.tone}` }), `${line.label} `, values[index]));
  const element = h(
    "section",
    { class: "card chart" },
    h("h3", {}, h("span", {}, title), at),
    h("p", { class: "reading" }, big, " ", h("span", { class: "unit" }, caption)),
    box,
    h("ul", { class: "legend" }, legend),
  );
  let end = 0;
  let plot = null;

  const show = () => {
    const index = plot.cursor.idx ?? null;
    const last = plot.data[0].length - 1;
    values.forEach((value, line) => (value.textContent = rate(plot.data[lines.length - line][index ?? last])));
    replace(at, index === null ? null : [clock(plot.data[0][index]), nearestLabel(plot)]);
  };
  const build = (data) => {
    const reached = () => [end - RANGES[range][1], end];
    plot = new uPlot(options(unit, lines, reached, show), data, box);
    new ResizeObserver(() => plot.setSize({ width: box.clientWidth, height: HEIGHT })).observe(box);
    new MutationObserver(() => plot.redraw(false)).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw(false));
  };
  const draw = (columns, now) => {
    end = now;
    const data = withGaps([columns.at, ...lines.map(({ name }) => columns[name]).reverse()], columns.interval_seconds);
    if (plot === null) build(data);
    else plot.setData(data);
    big.textContent = rate(columns[lines[0].name].at(-1));
    show();
  };
  return { element, draw };
}

function options(unit, lines, reached, show) {
  const axis = {
    stroke: () => colour("muted"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: () => colour("line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width: 300,
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: SYNC.key, scales: ["x", null] }, points: { size: 6 } },
    scales: { x: { time: true, range: reached }, y: { range: (plot, least, most) => [0, ceiling(most)] } },
    axes: [
      { ...axis, size: 24, gap: 4, space: 56, incrs: TICKS, values: (plot, times) => times.map(minutes), grid: { show: false } },
      { ...axis, size: 52, gap: 4, space: 32, values: (plot, numbers) => numbers.map((number) => `${rate(number)}${unit}`) },
    ],
    series: [{}, ...lines.map(line).reverse()], // the first line is drawn last, above the others
    hooks: { setCursor: [show], draw: [drawMarkers] },
  };
}

/** The first line of a chart has an area below it. */
const line = ({ label, tone }, index) => ({
  label,
  stroke: () => colour(tone),
  fill: index === 0 ? () => `${colour(tone)}22` : undefined,
  width: 1.6,
  points: { show: false },
});

function drawMarkers(plot) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = colour("strong-line");
  ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  for (const marker of inView(plot)) {
    const x = Math.round(plot.valToPos(marker.at, "x", true));
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

const inView = ({ scales: { x } }) => markers.filter(({ at }) => at >= x.min && at <= x.max);

function nearestLabel(plot) {
  const distance = ({ at }) => Math.abs(plot.valToPos(at, "x") - plot.cursor.left);
  const near = inView(plot).filter((marker) => distance(marker) <= NEAR);
  return near.length ? h("span", { class: "marker clip", title: near[0].label }, near[0].label) : null;
}

/** The next 1, 2 or 5 times a power of ten, so that the scale does not tremble. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** Insert a row without numbers wherever samples are missing: uPlot would connect the neighbours. */
function withGaps(columns, interval) {
  const found = columns.map(() => []);
  columns[0].forEach((at, index) => {
    const before = columns[0][index - 1];
    if (before !== undefined && at - before > GAP * interval) found.forEach((column, number) => column.push(number ? null : before + interval));
    found.forEach((column, number) => column.push(columns[number][index]));
  });
  return found;
}
