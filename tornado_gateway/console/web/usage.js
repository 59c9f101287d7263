// The use of the features: decisions and exposures of all workers, and requested keys that no feature has.

import { ago, ask, byId, count, plural } from "./dom.js";

const SHOWN_KEYS = 10;

/** Fill the places for it in the list of features. */
export async function refreshUsage() {
  const { features, unknown_keys: unknown } = await ask("/admin/usage");
  for (const place of byId("feature-list").querySelectorAll("[data-usage]")) {
    const usage = features[place.dataset.usage];
    place.textContent = usage ? inWords(usage) : "";
  }
  const shown = unknown.slice(0, SHOWN_KEYS).map((each) => `${each.key} (${count(each.requests)})`);
  const more = unknown.length > SHOWN_KEYS ? ", …" : "";
  byId("unknown-keys").textContent = unknown.length ? `Requested keys that no feature has: ${shown.join(", ")}${more}` : "";
}

function inWords(usage) {
  const { enabled, disabled, error } = usage.decisions;
  const total = enabled + disabled + error;
  if (usage.is_unused) return "not evaluated for 30 days";
  if (!total) return "no decisions yet";
  const errors = error ? `, ${plural(error, "error")}` : "";
  return [
    `${plural(total, "decision")}: ${count(enabled)} on, ${count(disabled)} off${errors}`,
    `${plural(usage.exposures_per_minute, "exposure")} per minute`,
    `last ${ago(usage.last_evaluated_at, Date.now() / 1000)}`,
  ].join(" · ");
}
