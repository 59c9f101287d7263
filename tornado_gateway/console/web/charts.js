// Small time charts in SVG: one slot a second, the newest at the right.

import { duration, h, rate } from "./dom.js";

const FEWEST_SLOTS = 60;
const HEIGHT = 100;

/** A chart of several series. `lines` are {name, label, tone}; `draw` takes the columns of /admin/overview. */
export function chart(title, unit, lines) {
  const paths = lines.map((line, index) => ({
    ...line,
    area: index === 0 ? h("path", { class: `area tone-${line.tone}` }) : null,
    stroke: h("path", { class: `stroke tone-${line.tone}`, "vector-effect": "non-scaling-stroke" }),
    value: h("span", { class: "legend-value" }, "–"),
  }));
  const cursor = h("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden", "vector-effect": "non-scaling-stroke" });
  const svg = h(
    "svg",
    { preserveAspectRatio: "none", "aria-hidden": "true", class: "plot" },
    paths.map((path) => path.area),
    paths.map((path) => path.stroke).reverse(),
    cursor,
  );
  const top = h("span", { class: "axis-top" }, "");
  const left = h("span", {}, "");
  const right = h("span", {}, "now");
  const big = h("span", { class: "big" }, "–");
  const state = { columns: null, at: null, slots: FEWEST_SLOTS };

  const show = () => {
    const { columns, at, slots } = state;
    if (!columns) return;
    const length = columns.at.length;
    const index = at === null ? length - 1 : at - (slots - length);
    for (const path of paths) path.value.textContent = index < 0 ? "–" : rate(columns[path.name][index]);
    right.textContent = at === null ? "now" : index < 0 ? "" : new Date(columns.at[index] * 1000).toLocaleTimeString("en-GB");
    cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    cursor.setAttribute("x1", at ?? 0);
    cursor.setAttribute("x2", at ?? 0);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    state.at = Math.round(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (state.slots - 1));
    show();
  });
  svg.addEventListener("pointerleave", () => {
    state.at = null;
    show();
  });

  const element = h(
    "section",
    { class: "card chart" },
    h("h3", {}, title),
    h("p", { class: "reading" }, big, " ", h("span", { class: "unit" }, unit)),
    h("div", { class: "plot-box" }, top, svg),
    h("div", { class: "axis", "aria-hidden": "true" }, left, right),
    h(
      "ul",
      { class: "legend" },
      paths.map((path) => h("li", {}, h("i", { class: `swatch tone-${path.tone}` }), `${path.label} `, path.value)),
    ),
  );
  const draw = (columns) => {
    state.columns = columns;
    state.slots = Math.max(FEWEST_SLOTS, columns.at.length);
    svg.setAttribute("viewBox", `0 0 ${state.slots - 1} ${HEIGHT}`);
    left.textContent = `${duration(state.slots)} ago`;
    const most = ceiling(Math.max(...paths.flatMap((path) => columns[path.name]), 0));
    top.textContent = rate(most);
    for (const path of paths) {
      const runs = outlines(columns[path.name], most, state.slots);
      path.stroke.setAttribute("d", runs.map((run) => run.line).join(""));
      path.area?.setAttribute("d", runs.map((run) => `${run.line}L${run.last} ${HEIGHT}L${run.first} ${HEIGHT}Z`).join(""));
    }
    big.textContent = rate(columns[paths[0].name].at(-1));
    show();
  };
  return { element, draw };
}

/** The next 1, 2 or 5 times a power of ten, so that the scale does not tremble. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

/** A line for each run of values; null is a gap, and so is what was before the first sample. */
function outlines(values, most, slots) {
  const runs = [];
  values.forEach((value, index) => {
    if (value === null) return;
    const x = slots - values.length + index;
    const point = `${x} ${(HEIGHT - (value / most) * (HEIGHT - 2)).toFixed(2)}`;
    const run = runs.at(-1);
    if (run?.last === x - 1) Object.assign(run, { last: x, line: `${run.line}L${point}` });
    else runs.push({ first: x, last: x, line: `M${point}` });
  });
  return runs;
}
