// The path to a decision: one list item for each step of the engine.

import { h, json } from "./dom.js";
import { KINDS } from "./features.js";

export const REASONS = {
  rollout: "by a rollout rule",
  experiment: "by an experiment rule",
  whitelisted: "whitelisted",
  stored: "as decided earlier",
  holdout: "withheld by a holdout",
  "no rule matched": "no rule matched",
  "out of traffic": "a rule matched, but not its share of the traffic",
  "lost group": "another campaign of its group was chosen",
  "feature not found": "feature not found",
  error: "an error",
};

const MARKS = { true: ["yes", "✓", "true"], false: ["no", "✗", "false"] };

const mark = (result) => {
  const [tone, sign, word] = MARKS[result] ?? ["other", "·", ""];
  return [h("span", { class: `mark ${tone}`, "aria-hidden": "true" }, sign), word ? h("span", { class: "for-readers" }, word) : null];
};

const item = (result, step, decision, ...line) =>
  h(
    "li",
    { class: `step step-${step.step}${isDeciding(step, decision) ? " deciding" : ""}` },
    h("div", { class: "line" }, mark(result), h("div", { class: "said" }, line)),
    step.steps?.length ? h("ul", {}, step.steps.map((inner) => stepItem(inner, decision))) : null,
  );

const isDeciding = (step, { rule }) =>
  step.step === "rule" && step.passed === true && rule && step.campaign === rule.campaign_id && step.rule === rule.rule_key;

const STEPS = {
  rule: (step, decision) =>
    item(
      step.passed,
      step,
      decision,
      h("b", {}, `${KINDS[step.kind] ?? step.kind}: ${step.name}`),
      h("span", { class: "hint" }, `${step.rule} · campaign ${step.campaign}`),
      isDeciding(step, decision) ? h("span", { class: "pill accent" }, "decides") : null,
    ),
  segment: condition,
  check: condition,
  skipped: (step, decision) => item(null, step, decision, step.words, h("span", { class: "note" }, "skipped: a location beside other conditions")),
  traffic: (step, decision) => [
    item(step.passed, step, decision, step.bucket === null ? "Traffic: there is no user id" : `Traffic: bucket ${step.bucket} of 100, ${step.limit} % are admitted`),
    step.bucket === null || step.limit >= 100 ? null : buckets([[step.limit, step.passed]], step.bucket),
  ],
  variation: (step, decision) => [
    item(step.variation !== null, step, decision, `Variation: bucket ${step.bucket} of 10,000 gives ${step.name ?? "none"}`),
    buckets(
      step.ranges.filter((range) => range.from > 0).map((range) => [(range.to - range.from + 1) / 100, range.variation === step.variation]),
      step.bucket / 100,
    ),
  ],
  whitelisting: (step, decision) =>
    item(step.variation !== null, step, decision, step.variation === null ? "Whitelisting: not listed" : `Whitelisting: listed for variation ${step.variation}`),
  holdout: (step, decision) =>
    item(
      !step.matched,
      step,
      decision,
      h("b", {}, `Holdout: ${step.name}`),
      h("span", {}, step.bucket ? `bucket ${step.bucket} of 100, ${step.limit} % are withheld` : "its segment is not met"),
      h("span", { class: "has" }, step.matched ? "the visitor is withheld" : "the visitor is not"),
    ),
  group: (step, decision) =>
    item(
      null,
      step,
      decision,
      h("b", {}, `Group ${step.group}`),
      h("span", {}, `eligible: ${(step.eligible ?? []).join(", ") || "none"};`),
      step.winner == null ? "no campaign wins" : `campaign ${step.winner} wins${step.bucket ? ` at bucket ${step.bucket} of 10,000` : ""}`,
    ),
  stored: (step, decision) => item(null, step, decision, `Stored decision for ${step.key}: ${step.result}`),
  slow: (step, decision) => item(false, step, decision, `Exceeded their time limit, counted as not matching: ${step.patterns.join(" ")}`),
  end: (step, decision) => item(step.enabled, step, decision, h("b", {}, step.enabled ? "Enabled" : "Disabled"), h("span", { class: "hint" }, REASONS[step.reason] ?? step.reason)),
};

function condition(step, decision) {
  const has = "actual" in step ? (step.missing ? "the visitor has none" : `the visitor has ${json(step.actual)}`) : null;
  return item(step.result, step, decision, step.words, has ? h("span", { class: "has" }, has) : null);
}

export const stepItem = (step, decision) => {
  const build = STEPS[step.step];
  return build ? build(step, decision) : item(null, step, decision, JSON.stringify(step));
};

/** Where a bucket lies among ranges: shares in percent, and the position in percent. */
const buckets = (shares, at) =>
  h(
    "li",
    { class: "buckets", "aria-hidden": "true" },
    shares.map(([share, isHit]) => h("i", { class: isHit ? "hit" : "", vars: { "--share": `${Math.min(share, 100)}%` } })),
    h("b", { vars: { "--at": `${at}%` } }),
  );
