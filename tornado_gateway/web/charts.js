// Small time charts in SVG: one slot a second, the newest at the right.

import { h, rate } from "./dom.js";

const SLOTS = 300;
const HEIGHT = 100;

/** A chart of several series. `lines` are {name, label, tone}; `draw` takes the columns of /admin/overview. */
export function chart(title, unit, lines) {
  const paths = lines.map((line, index) => ({
    ...line,
    area: index === 0 ? h("path", { class: `area tone-${line.tone}` }) : null,
    stroke: h("path", { class: `stroke tone-${line.tone}`, "vector-effect": "non-scaling-stroke" }),
    value: h("span", { class: "legend-value" }, "–"),
  }));
  const cursor = h("line", { class: "cursor", y1: 0, y2: HEIGHT, x1: -9, x2: -9, "vector-effect": "non-scaling-stroke" });
  const svg = h(
    "svg",
    { viewBox: `0 0 ${SLOTS - 1} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "plot" },
    paths.map((path) => path.area),
    paths.map((path) => path.stroke),
    cursor,
  );
  const top = h("span", { class: "axis-top" }, "");
  const left = h("span", {}, "5 min ago");
  const right = h("span", {}, "now");
  const big = h("span", { class: "big" }, "–");
  const state = { columns: null, at: null };

  const show = () => {
    const { columns, at } = state;
    if (!columns) return;
    const length = columns.at.length;
    const index = at === null ? length - 1 : at - (SLOTS - length);
    for (const path of paths) path.value.textContent = index < 0 ? "–" : rate(columns[path.name][index]);
    right.textContent = at === null ? "now" : index < 0 ? "" : new Date(columns.at[index] * 1000).toLocaleTimeString("en-GB");
    cursor.setAttribute("x1", at ?? -9);
    cursor.setAttribute("x2", at ?? -9);
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    state.at = Math.round(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (SLOTS - 1));
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
    const most = ceiling(Math.max(...paths.flatMap((path) => columns[path.name]), 0));
    top.textContent = rate(most);
    for (const path of paths) {
      const line = outline(columns[path.name], most);
      path.stroke.setAttribute("d", line);
      path.area?.setAttribute("d", filled(line, columns[path.name].length));
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

function outline(values, most) {
  const first = SLOTS - values.length;
  const points = values.map((value, index) => `${first + index} ${(HEIGHT - (value / most) * (HEIGHT - 2)).toFixed(2)}`);
  return points.length ? `M${points.join("L")}` : "";
}

function filled(line, length) {
  return line && `${line}L${SLOTS - 1} ${HEIGHT}L${SLOTS - length} ${HEIGHT}Z`;
}
