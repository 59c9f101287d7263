// The experiments: visitors, shares of the variations next to their weights, and the test of both.

import { ask, byId, count, h, plural, reconcile } from "./dom.js";
import { meter } from "./features.js";

const PILLS = { mismatch: "bad", "as configured": "good", "too few visitors": "" };

/** Load the experiments and show them, those with a mismatch first. */
export async function refreshExperiments() {
  const { experiments, limits, unreadable } = await ask("/admin/experiments");
  const sorted = [...experiments].sort((a, b) => Number(isWrong(b)) - Number(isWrong(a)) || b.visitors - a.visitors);
  const wrong = experiments.filter(isWrong).length;
  byId("experiment-count").textContent = experiments.length
    ? `${plural(experiments.length, "experiment")}, ${wrong} with a sample ratio mismatch`
    : "No experiments: no feature has an A/B test with several variations.";
  if (unreadable) byId("experiment-count").append(`. Not all visitors can be read: ${unreadable}`);
  reconcile(byId("experiment-list"), sorted, stateOf, (each) => card(each, limits));
}

/** A text that changes with everything that a card shows. */
const stateOf = (experiment) => JSON.stringify(experiment);

const isWrong = (experiment) => experiment.verdict === "mismatch";

const card = (experiment, limits) =>
  h(
    "article",
    { class: "card rule", "data-verdict": experiment.verdict },
    h(
      "div",
      { class: "rule-head" },
      h("span", { class: `pill ${PILLS[experiment.verdict]}` }, experiment.verdict),
      h("b", {}, experiment.campaign.name),
      h("span", { class: "hint" }, `feature ${experiment.feature} · campaign ${experiment.campaign.id} · traffic ${experiment.traffic} %`),
    ),
    h("p", {}, sentence(experiment, limits)),
    table(experiment),
  );

function sentence({ verdict, visitors, switched, p, sequential_p: sequential }, limits) {
  const parts = [`${plural(visitors, "visitor")}.`];
  if (verdict === "too few visitors") parts.push(`The shares are tested from ${plural(limits.visitors, "visitor")} on.`);
  else parts.push(`p ${probability(sequential)} at any time, chi-square ${probability(p)} now. The alarm is at p < ${limits.p}.`);
  if (switched) parts.push(`${plural(switched, "visitor")} had several variations and count for the first.`);
  return parts.join(" ");
}

const probability = (p) => (p < 0.0001 ? `= ${p.toExponential(0)}` : `= ${p.toFixed(4)}`);

const table = (experiment) =>
  h(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": `Shares of ${experiment.campaign.name}` },
    h(
      "table",
      { class: "stack shares" },
      h("thead", {}, h("tr", {}, ["Variation", "Share", "Weight", "Sampled visitors"].map((name) => h("th", { scope: "col" }, name)))),
      h(
        "tbody",
        {},
        experiment.variations.map((variation) =>
          h(
            "tr",
            {},
            h("td", {}, h("b", {}, variation.name)),
            h("td", { "data-label": "Share" }, variation.share === null ? "–" : h("div", { class: "share" }, meter(variation.share), `${variation.share.toFixed(2)} %`)),
            h("td", { "data-label": "Weight" }, `${variation.weight} %`),
            h("td", { "data-label": "Sampled visitors" }, count(variation.sampled)),
          ),
        ),
      ),
    ),
  );
