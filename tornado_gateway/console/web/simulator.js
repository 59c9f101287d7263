// Simulated visitors: the form, the progress, and the distribution of each feature.

import { byId, count, follow, h, plural, replace } from "./dom.js";
import { enter } from "./session.js";

let running = null; // the AbortController of a simulation

export function startSimulator() {
  byId("simulate-form").addEventListener("submit", simulate);
  byId("simulate-cancel").addEventListener("click", () => running?.abort());
  byId("simulate-source").addEventListener("change", showSource);
  showSource(); // the browser may have restored the choice
}

/** Offer these features in the form. */
export function fillSimulatedFeatures(features) {
  const choice = byId("simulate-feature");
  const before = choice.value;
  replace(choice, h("option", { value: "" }, "All features"), features.map((feature) => h("option", { value: feature.key }, feature.key)));
  choice.value = features.some((feature) => feature.key === before) ? before : "";
}

// --- The form ---

const linesOf = (id) => byId(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

function mistake(id, message) {
  return Object.assign(new Error(message), { field: byId(id) });
}

const SOURCES = {
  visitors: () => Number(byId("simulate-count").value),
  ids: () => {
    const ids = linesOf("simulate-ids");
    if (!ids.length) throw mistake("simulate-ids", "Enter the IDs of visitors, one in each line.");
    return ids;
  },
  recent: () => true,
};

function showSource() {
  for (const part of document.querySelectorAll("#simulate-form [data-source]")) part.hidden = part.dataset.source !== byId("simulate-source").value;
}

/** The body of the request; throws with the field that is wrong. */
function request() {
  const fields = {};
  const texts = { featureKey: "simulate-feature", ipAddress: "simulate-ip", userAgent: "simulate-agent" };
  for (const [name, id] of Object.entries(texts)) if (byId(id).value.trim()) fields[name] = byId(id).value.trim();
  const source = byId("simulate-source").value;
  fields[source] = SOURCES[source]();
  if (byId("simulate-variables").value.trim()) fields.customVariables = customVariables();
  fields.traffic = changes("simulate-traffic", "testingRule1=50", (shares) => (shares.length === 1 ? shares[0] : null));
  fields.weights = changes("simulate-weights", "testingRule1=80/20", (shares) => shares);
  return fields;
}

function customVariables() {
  let value = null;
  try {
    value = JSON.parse(byId("simulate-variables").value);
  } catch {
    // reported below
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  throw mistake("simulate-variables", 'Custom variables: expected a JSON object, such as {"plan": "gold"}');
}

/** The lines RULE=50 or RULE=80/20 of a field, as an object. */
function changes(id, example, valueOf) {
  const found = {};
  for (const line of linesOf(id)) {
    const at = line.lastIndexOf("=");
    const shares = line.slice(at + 1).split("/").map((share) => (share.trim() ? Number(share) : NaN));
    const value = at > 0 && shares.every(Number.isFinite) ? valueOf(shares) : null;
    if (value === null) throw mistake(id, `Expected a line such as ${example}, found ${line}`);
    found[line.slice(0, at).trim()] = value;
  }
  return found;
}

function setRunning(isRunning) {
  byId("simulate-start").disabled = isRunning;
  byId("simulate-cancel").hidden = !isRunning;
  byId("simulation").setAttribute("aria-busy", String(isRunning));
}

async function simulate(event) {
  event.preventDefault();
  if (running) return;
  const problem = byId("simulate-problem");
  for (const field of byId("simulate-form").querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  problem.textContent = "";
  try {
    const body = request();
    running = new AbortController();
    setRunning(true);
    await follow("/admin/simulate", body, running.signal, showLine);
  } catch (error) {
    problem.textContent = error.message;
    error.field?.setAttribute("aria-invalid", "true");
    error.field?.focus();
    if (error.status === 401) await enter();
  }
  running = null;
  setRunning(false);
  byId("simulate-progress").textContent = "";
}

// --- The result ---

function showLine({ progress, result }) {
  if (progress) byId("simulate-progress").textContent = `${count(progress.done)} of ${plural(progress.of, "visitor")} …`;
  if (result) replace(byId("simulation"), result.features.map((feature) => card(feature, result)), h("p", { class: "hint" }, `Ranges: ${result.band}. The mark in a bar is the weight.`));
}

const card = (feature, result) =>
  h(
    "section",
    { class: "card simulated" },
    h("div", { class: "bar" }, h("h3", {}, feature.feature), h("p", { class: "hint" }, enabled(feature, result.visitors))),
    distribution(feature, `Distribution of ${feature.feature}`),
    feature.what_if ? whatIf(feature, result.visitors) : null,
  );

const whatIf = ({ feature, what_if: changed }, visitors) => [
  h("div", { class: "bar" }, h("h4", {}, "What if"), h("p", { class: "hint" }, enabled(changed, visitors))),
  distribution(changed, `Distribution of ${feature} with the changes`),
  h("p", {}, h("b", {}, plural(changed.moved, "visitor")), " would move."),
  h("ul", {}, changed.moves.map((move) => h("li", {}, `${move.from} → ${move.to}: ${count(move.visitors)}`))),
  changed.moved ? h("p", { class: "hint moved-ids" }, `First: ${changed.moved_visitors.map((moved) => moved.user).join(", ")}`) : null,
];

const enabled = (part, visitors) => `enabled for ${count(part.enabled)} of ${plural(visitors, "visitor")}: ${shareText(part)}`;

const distribution = (part, label) => [
  h(
    "div",
    { class: "scroll", role: "region", "aria-label": label, tabindex: "0" },
    h(
      "table",
      { class: "stack" },
      h("thead", {}, h("tr", {}, ["Rule", "Variation", "Visitors", "Share", "Bar", "Configured"].map((name) => h("th", { scope: "col" }, name === "Bar" ? h("span", { class: "for-readers" }, name) : name)))),
      h("tbody", {}, part.variations.map(row)),
    ),
  ),
  h("p", { class: "hint" }, `Decided by: ${Object.entries(part.decided).map(([way, number]) => `${way} ${count(number)}`).join(", ")}`),
];

const row = (item) =>
  h(
    "tr",
    {},
    h("td", { "data-label": "Rule" }, item.rule),
    h("td", { "data-label": "Variation" }, item.variation.name),
    h("td", { "data-label": "Visitors" }, count(item.visitors)),
    h("td", { "data-label": "Share" }, shareText(item)),
    h("td", {}, item.share === null ? null : shareBar(item)),
    h("td", { "data-label": "Configured" }, item.weight === null ? `traffic ${item.traffic} %` : `weight ${item.weight} %, traffic ${item.traffic} %`),
  );

const percent = (value) => value.toFixed(1);

const shareText = ({ share, low, high }) => (share === null ? "–" : `${percent(share)} % (${percent(low)} – ${percent(high)})`);

/** The share as a bar, its band as a line in it, and the configured weight as a mark. */
function shareBar({ share, low, high, weight }) {
  const at = Number(weight);
  return h(
    "svg",
    { class: "simulated-share", viewBox: "0 0 100 12", preserveAspectRatio: "none", "aria-hidden": "true" },
    h("rect", { class: "track", width: 100, height: 12 }),
    h("rect", { class: "bar-fill", width: share, height: 12 }),
    h("rect", { class: "band", x: low, y: 4, width: Math.max(high - low, 0.5), height: 4 }),
    weight === null ? null : h("line", { class: "weight", x1: at, x2: at, y1: 0, y2: 12 }),
  );
}
