// The features and their rules, as the account has them.

import { ask, byId, count, h, json, plural, reconcile, replace } from "./dom.js";

export const KINDS = { rollout: "Rollout", ab: "A/B test", personalize: "Personalization", other: "Other" };

let features = null; // the last ones loaded
let featuresHash = null; // of their settings
let onExplain = null;

/** `explain` is called with the key of a feature. */
export function startFeatures(explain) {
  onExplain = explain;
  byId("filter").addEventListener("input", showFeatures);
}

/** Load the features if the settings have changed. Returns them in that case, else null. */
export async function refreshFeatures(overview) {
  const hash = overview.status.settings?.hash ?? null;
  if (hash === featuresHash) return null;
  features = (await ask("/admin/features")).features;
  featuresHash = hash;
  byId("feature-list").replaceChildren();
  showFeatures();
  return features;
}

const searchText = (feature) =>
  JSON.stringify([
    feature.key,
    feature.name,
    feature.rules.map((rule) => [rule.text, rule.rule_key, rule.campaign.name, rule.group?.text]),
    feature.variables.map((variable) => variable.key),
    feature.metrics.map((metric) => metric.identifier),
    feature.holdouts.map((holdout) => holdout.name),
  ]).toLowerCase();

function showFeatures() {
  if (!features) return;
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = features.filter((feature) => words.every((word) => searchText(feature).includes(word)));
  const keys = new Set(found.map((feature) => feature.key));
  reconcile(byId("feature-list"), features, (feature) => feature.key, featureCard);
  for (const card of byId("feature-list").children) card.hidden = !keys.has(card.dataset.key);
  byId("feature-count").textContent = words.length
    ? `${count(found.length)} of ${plural(features.length, "feature")}`
    : plural(features.length, "feature");
}

const featureCard = (feature) => {
  const body = h("div", { class: "feature-body" });
  const details = h(
    "details",
    { class: "card feature" },
    h(
      "summary",
      {},
      h("code", {}, h("b", {}, feature.key)),
      h("span", { class: "name" }, feature.name),
      h("span", { class: "hint", "data-usage": feature.key }),
      feature.status === "ON" ? null : h("span", { class: "pill warn" }, feature.status),
      h(
        "span",
        { class: "kinds" },
        feature.rules.map((rule) => h("span", { class: `pill ${rule.kind === "ab" ? "accent" : ""}` }, KINDS[rule.kind])),
      ),
    ),
    body,
  );
  details.addEventListener("toggle", () => {
    if (details.open && !body.firstChild) replace(body, featureBody(feature));
  });
  return details;
};

const featureBody = (feature) => [
  feature.holdouts.map((holdout) =>
    h("p", {}, h("span", { class: "pill warn" }, "Holdout"), ` ${holdout.name}: ${holdout.text.toLowerCase()}`),
  ),
  h(
    "ol",
    { class: "feature-list" },
    feature.rules.map((rule) => h("li", {}, ruleCard(rule))),
  ),
  feature.rules.length ? null : h("p", { class: "hint" }, "No rules: the feature is off for everyone."),
  h(
    "dl",
    { class: "feature-foot" },
    h("dt", {}, "Metrics"),
    h("dd", {}, feature.metrics.map((metric) => metric.identifier).join(", ") || "none"),
    h("dt", {}, "Inputs"),
    h("dd", {}, needs(feature.needs)),
    feature.impact_campaign ? [h("dt", {}, "Impact campaign"), h("dd", {}, feature.impact_campaign)] : null,
  ),
  h("p", {}, h("button", { type: "button", onclick: () => onExplain(feature.key) }, "Explain for a visitor")),
];

function needs({ location: place, device, lists }) {
  const all = [place && "location", device && "device", ...lists.map((list) => `list ${list}`)].filter(Boolean);
  return all.join(", ") || "request only";
}

const ruleCard = (rule) =>
  h(
    "article",
    { class: "rule" },
    h(
      "div",
      { class: "rule-head" },
      h("span", { class: `pill ${rule.kind === "ab" ? "accent" : ""}` }, KINDS[rule.kind]),
      h("b", {}, rule.campaign.name),
      rule.campaign.status === "RUNNING" ? null : h("span", { class: "pill warn" }, rule.campaign.status),
      h("span", { class: "hint" }, `${rule.rule_key} · campaign ${rule.campaign.id}`),
    ),
    h("div", { class: "who" }, h("h3", {}, "Audience"), h("ul", { class: "words" }, words(rule.segment)), traffic(rule.percent)),
    variationTable(rule),
    rule.group ? h("p", {}, h("span", { class: "pill" }, `Group ${rule.group.name ?? rule.group.id}`), ` ${rule.group.text}.`) : null,
  );

const traffic = (percent) => h("p", { class: "share" }, meter(percent), `${percent} %`);

export const meter = (percent) =>
  h("span", { class: "meter", "aria-hidden": "true" }, h("i", { vars: { "--share": `${Number(percent) || 0}%` } }));

/** The tree of a described segment as nested list items. */
function words(node) {
  const note = node.note ? h("span", { class: "note" }, ` ${node.note}`) : null;
  if ("text" in node) return h("li", {}, node.text, note);
  const name = ["all", "any", "not"].find((each) => each in node);
  const title = { all: "all of", any: "any of", not: "not" }[name];
  return h("li", {}, h("span", { class: "joint" }, title), note, h("ul", {}, node[name].map(words)));
}

function variationTable(rule) {
  const isTest = rule.kind === "ab";
  return h(
    "div",
    { class: "scroll", role: "group", tabindex: "0", "aria-label": `Variations of ${rule.campaign.name}` },
    h(
      "table",
      { class: "stack" },
      h("thead", {}, h("tr", {}, ["Variation", isTest ? "Weight" : null, "Variables"].filter(Boolean).map((name) => h("th", { scope: "col" }, name)))),
      h(
        "tbody",
        {},
        rule.variations.map((variation) =>
          h(
            "tr",
            {},
            h("td", {}, h("b", {}, variation.name), variation.listed ? h("div", { class: "hint" }, variation.listed.text) : null),
            isTest ? h("td", {}, h("div", { class: "share" }, meter(variation.weight), `${variation.weight} %`), bucketHint(variation)) : null,
            h("td", {}, variables(variation.variables)),
          ),
        ),
      ),
    ),
  );
}

const bucketHint = ({ buckets }) => (buckets ? h("div", { class: "hint" }, `buckets ${buckets.from}–${buckets.to}`) : null);

export const variables = (list) =>
  list.length
    ? h("div", { class: "variables" }, list.map((item) => h("code", {}, h("span", { class: "key" }, `${item.key} `), json(item.value))))
    : h("span", { class: "hint" }, "none");
