// Explaining decisions: the form, and the result with the path to each decision.

import { byId, h, post, replace, useEnvironment } from "./dom.js";
import { variables } from "./features.js";
import { enter } from "./session.js";
import { linkOf, copyBar, fieldsOf } from "./share.js";
import { REASONS, stepItem } from "./steps.js";

const INPUTS = { id: "explain-id", featureKey: "explain-feature", version: "explain-version", ipAddress: "explain-ip", userAgent: "explain-agent", bucketingSeed: "explain-seed" };

let opened = ""; // the address of the explanation in view
let kept = null; // an explanation that stays beside later ones

export function startExplain() {
  byId("explain-form").addEventListener("submit", explain);
}

/** Fill the form with the fields of the address, if it has any, and explain. */
export function openAddress() {
  const fields = fieldsOf(location.hash);
  if (fields === null || location.hash === opened) return;
  opened = location.hash;
  if (fields.environment) {
    choose(byId("environment"), fields.environment).dataset.key = fields.environment;
    useEnvironment(fields.environment);
  }
  for (const [name, id] of Object.entries(INPUTS)) {
    if (byId(id).tagName === "SELECT") choose(byId(id), fields[name] ?? "");
    else byId(id).value = fields[name] ?? "";
  }
  for (const area of document.querySelectorAll("textarea[data-json]")) area.value = fields[area.dataset.json] ?? "";
  byId("explain-form").requestSubmit();
}

/** Choose a value, which becomes an option if it is none. Return its option. */
function choose(select, value) {
  let option = [...select.options].find((known) => known.value === value);
  if (!option) {
    option = h("option", { value, "data-linked": "true" }, value);
    select.append(option);
  }
  select.value = value;
  return option;
}

/** Offer these features in the form. */
export function fillFeatureChoice(features) {
  const choice = byId("explain-feature");
  const before = choice.value;
  const isLinked = choice.selectedOptions[0]?.dataset.linked;
  replace(choice, h("option", { value: "" }, "All features"), features.map((feature) => h("option", { value: feature.key }, feature.key)));
  if (isLinked) choose(choice, before);
  else choice.value = features.some((feature) => feature.key === before) ? before : "";
}

/** Select a feature; the user ID is next. */
export function chooseFeature(key) {
  const choice = byId("explain-feature");
  const isKnown = [...choice.options].some((option) => option.value === key);
  if (!isKnown) choice.append(h("option", { value: key }, key)); // the features have not been loaded yet
  choice.value = key;
  byId("explain-id").focus();
}

/** The body of the request; throws with the field that is wrong. */
function visitor() {
  const fields = { id: "" };
  for (const [name, id] of Object.entries(INPUTS)) if (byId(id).value.trim()) fields[name] = byId(id).value.trim();
  if (!fields.id) throw Object.assign(new Error("Enter a user ID."), { field: byId("explain-id") });
  for (const area of document.querySelectorAll("textarea[data-json]")) {
    if (area.value.trim()) fields[area.dataset.json] = jsonObject(area);
  }
  return fields;
}

function jsonObject(area) {
  const label = document.querySelector(`label[for="${area.id}"]`).firstChild.textContent.trim();
  let value = null;
  try {
    value = JSON.parse(area.value);
  } catch {
    // reported below
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  throw Object.assign(new Error(`${label}: expected a JSON object, such as {"plan": "gold"}`), { field: area });
}

async function explain(event) {
  event.preventDefault();
  const result = byId("explanation");
  const problem = byId("explain-problem");
  for (const field of byId("explain-form").querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  problem.textContent = "";
  result.setAttribute("aria-busy", "true");
  try {
    const fields = visitor();
    opened = linkOf(fields);
    history.replaceState(null, "", opened);
    showExplanation(await post("/admin/explain", fields), fields);
  } catch (error) {
    problem.textContent = error.message;
    error.field?.setAttribute("aria-invalid", "true");
    error.field?.focus();
    if (error.status === 401) await enter();
  }
  result.setAttribute("aria-busy", "false");
}

function showExplanation(explanation, fields) {
  const result = byId("explanation");
  if (kept === null) {
    replace(result, shown(explanation));
    const keep = (event) => {
      kept = shown(explanation);
      event.target.replaceWith(h("p", { class: "hint" }, "Explain another visitor to see both side by side."));
    };
    result.append(h("div", { class: "card" }, copyBar(fields), h("button", { type: "button", onclick: keep }, "Compare with another visitor")));
    return;
  }
  const end = () => {
    kept = null;
    showExplanation(explanation, fields);
  };
  replace(
    result,
    h("div", { class: "beside" }, h("div", {}, kept), h("div", {}, shown(explanation))),
    h("div", { class: "card" }, copyBar(fields), h("button", { type: "button", onclick: end }, "End the comparison")),
  );
}

/** The elements of one explanation. */
function shown({ settings, visitor: who, decisions }) {
  const isOne = decisions.length === 1;
  const on = decisions.filter((decision) => decision.enabled).length;
  return [
    h(
      "p",
      { class: "visitor card" },
      fact("User", who.id),
      fact("Visitor", who.uuid),
      fact("Location", place(who.location, LOCATION_FACTS)),
      fact("Device", place(who.device, DEVICE_FACTS)),
      fact("Settings", settings.hash),
      isOne ? null : fact("Enabled", `${on} of ${decisions.length}`),
      who.notes.map((note) => h("span", { class: "note" }, note)),
    ),
    decisions.map((decision) => decisionCard(decision, isOne)),
  ];
}

const fact = (name, value) => h("span", {}, `${name} `, h("b", {}, value ?? "–"));

const LOCATION_FACTS = ["city", "region", "country"];
const DEVICE_FACTS = ["device_type", "device", "os", "os_version", "browser_string", "browser_version"];

function place(facts, names) {
  if (!facts) return "not given";
  return names.map((name) => facts[name]).filter(Boolean).join(", ") || "unknown";
}

const decisionCard = (decision, isOpen) => {
  const body = h("div", { class: "decision-body" });
  const details = h(
    "details",
    { class: "card decision", open: isOpen },
    h(
      "summary",
      { class: "verdict" },
      h("span", { class: `pill ${decision.enabled ? "good" : "bad"}` }, decision.enabled ? "on" : "off"),
      h("span", { class: "key" }, decision.feature_key),
      decision.variation ? h("span", {}, decision.variation.name) : null,
      h("span", { class: "hint" }, REASONS[decision.reason] ?? decision.reason, decision.rule ? `: ${decision.rule.name}` : ""),
    ),
    body,
  );
  const fill = () => {
    if (!body.firstChild) replace(body, decisionBody(decision));
  };
  if (isOpen) fill();
  details.addEventListener("toggle", fill);
  return details;
};

const decisionBody = (decision) => [
  decision.error ? h("p", { class: "problem" }, decision.error) : null,
  decision.did_you_mean ? h("p", { class: "note" }, `There is no feature ${decision.feature_key}. Did you mean ${decision.did_you_mean}?`) : null,
  decision.change ? h("p", { class: "change" }, decision.change.found ? `It would be on with this change: ${decision.change.text}.` : decision.change.text) : null,
  decision.variables.length ? h("div", {}, h("h4", {}, "Variables"), variables(decision.variables)) : null,
  h("div", {}, h("h4", {}, "Path"), h("ul", { class: "path" }, decision.steps.map((step) => stepItem(step, decision)))),
  h(
    "p",
    { class: "hint" },
    decision.impressions.length
      ? `getFlag would send: ${decision.impressions.map((shown) => `campaign ${shown.campaign} variation ${shown.variation}`).join(", ")}.`
      : "getFlag would send no impression.",
  ),
];
