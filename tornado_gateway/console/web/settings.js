// The versions of the settings: their timeline with differences in words, and the pin.

import { ask, byId, h, moment, plural, post, reconcile, replace } from "./dom.js";

let onChanged = null;
let chosen = null; // the version that the form pins
let inUse = null; // the pin that the workers follow

/** `refresh` is called after a version has been pinned or unpinned. */
export function startSettings(refresh) {
  onChanged = refresh;
  byId("unpin").addEventListener("click", unpin);
  byId("pin-cancel").addEventListener("click", closeForm);
  byId("pin-form").addEventListener("submit", pin);
}

/** The head of the page shows a pin on every tab. */
export function showPin({ settings }) {
  inUse = settings?.pin ?? null;
  byId("pin-badge").hidden = !inUse;
}

export async function refreshSettings() {
  try {
    showVersions(await ask("/admin/settings/versions"));
  } catch (error) {
    if (error.status !== 503) throw error;
    showHint(inUse);
    byId("versions-hint").textContent = `The versions cannot be read: ${error.message}`;
  }
}

function showHint(pin) {
  const text = pin ? pinText(pin) : "No version is pinned: the gateway follows VWO.";
  if (byId("pin-hint").textContent !== text) byId("pin-done").textContent = ""; // it is about the former pin
  byId("pin-hint").textContent = text;
  byId("unpin").hidden = !pin;
}

function showVersions({ pin: stored, versions }) {
  showHint(stored && { ...stored, version: stored.digest, changed_since: versions[0]?.digest !== stored.digest });
  byId("versions-hint").textContent = `${plural(versions.length, "version")}, the newest first`;
  const items = versions.map((version, index) => ({ ...version, before: versions[index + 1]?.digest ?? null }));
  reconcile(byId("versions"), items, versionKey, versionItem);
}

/** Offer the former versions in the form of Explain. */
export function fillVersionChoice({ markers, status }) {
  const choice = byId("explain-version");
  const before = choice.value;
  const former = markers.filter(({ version }) => version !== status.settings?.hash).reverse();
  const option = ({ at, version }) => h("option", { value: version }, `stored ${moment(at)} (${version.slice(0, 8)})`);
  replace(choice, h("option", { value: "" }, "current"), former.map(option));
  choice.value = former.some(({ version }) => version === before) ? before : "";
}

function pinText({ version, at, by, reason, until, changed_since: isOld }) {
  return [
    `${version.slice(0, 8)} is pinned by ${by} since ${moment(at)}`,
    until ? ` until ${moment(until)}` : "",
    reason ? ` (${reason})` : "",
    isOld ? ". The latest version from VWO is another one." : ".",
  ].join("");
}

const versionKey = (version) =>
  [version.digest, version.number, version.before, version.is_current, version.is_latest, version.is_pinned].join();

const NOTES = [
  ["is_current", "in use", "good"],
  ["is_pinned", "pinned", "warn"],
  ["is_latest", "latest from VWO", ""],
];

const versionItem = (version) =>
  h(
    "li",
    {},
    differences(version, [
      h("span", { class: "time" }, moment(version.at)),
      h("b", {}, `Version ${version.number}`),
      h("code", {}, version.digest.slice(0, 8)),
      h("span", {}, version.source),
      NOTES.filter(([name]) => version[name]).map(([, text, tone]) => h("span", { class: `pill ${tone}` }, text)),
    ]),
    version.is_pinned ? null : h("button", { type: "button", onclick: () => openForm(version) }, "Pin …"),
  );

/** Details with the differences to the version before, loaded when they are opened. */
function differences(version, summary) {
  const body = h("div", {});
  const details = h("details", {}, h("summary", {}, summary), body);
  details.addEventListener("toggle", async () => {
    if (!details.open || body.firstChild) return;
    try {
      replace(body, await changesOf(version));
    } catch (error) {
      replace(body, h("p", { class: "problem" }, error.message));
    }
  });
  return details;
}

async function changesOf({ digest, before }) {
  if (before === null) return h("p", { class: "hint" }, "The oldest version that is kept.");
  const { changes } = await ask(`/admin/settings/diff?from=${before}&to=${digest}`);
  return h("ul", {}, changes.map(({ subject, texts }) => h("li", {}, h("b", {}, subject), `: ${texts.join(", ")}`)));
}

// --- Pin ---

function openForm(version) {
  chosen = version;
  byId("pin-form").hidden = false;
  byId("pin-question").textContent =
    `Use version ${version.number} (${version.digest.slice(0, 8)}) of ${moment(version.at)} for all decisions, whatever VWO publishes?`;
  byId("pin-reason").focus();
}

function closeForm() {
  byId("pin-form").hidden = true;
  byId("pin-form").reset();
  byId("tab-settings").focus();
}

async function pin(event) {
  event.preventDefault();
  const seconds = Number(byId("pin-seconds").value) || null;
  await change("/admin/settings/pin", { version: chosen.digest, seconds, reason: byId("pin-reason").value.trim() }, "pinned");
}

async function unpin() {
  if (confirm("Return to the latest settings at all workers and machines?")) await change("/admin/settings/unpin", {}, "unpinned");
}

async function change(path, body, done) {
  byId("pin-problem").textContent = byId("pin-done").textContent = "";
  try {
    const outcome = await post(path, body);
    closeForm();
    await onChanged();
    byId("pin-done").textContent = `${outcome[done].slice(0, 8)} was ${done}. All workers follow within a second.`;
  } catch (error) {
    byId("pin-problem").textContent = error.message;
  }
}
