// The live stream: decisions and events of all workers as they happen. It is open only while it is in view.

import { addressOf, byId, clock, count, h } from "./dom.js";

const MOST_ROWS = 200;
const FILTERS = ["feature", "user", "outcome"];
const TONES = { enabled: "good", error: "bad", not_found: "warn" };
const WORDS = { not_found: "not found" };

let source = null;
let isWanted = false;
let isInView = false;
let explain = null;

/** `explainFor` is called with a feature and a user ID when a decision is chosen. */
export function startLive(explainFor) {
  explain = explainFor;
  byId("live-toggle").addEventListener("click", () => {
    isWanted = !isWanted;
    update();
  });
  for (const name of FILTERS) byId(`live-${name}`).addEventListener("change", reopen);
  document.addEventListener("visibilitychange", update);
}

/** Close the stream of a tab that is no longer in view, and open it again when it is. */
export function followLive(isShown) {
  isInView = isShown;
  update();
}

/** Show another environment. */
export function reopen() {
  close();
  byId("live-rows").replaceChildren();
  update();
}

function update() {
  byId("live-toggle").setAttribute("aria-pressed", String(isWanted));
  byId("live-toggle").textContent = isWanted ? "Pause" : byId("live-rows").childElementCount ? "Resume" : "Start";
  const isOpen = isWanted && isInView && !document.hidden;
  if (isOpen && source === null) open();
  else if (!isOpen) close();
}

function open() {
  const query = FILTERS.map((name) => [name, byId(`live-${name}`).value.trim()]).filter(([, value]) => value);
  say("Waiting for decisions and events …");
  source = new EventSource(addressOf(`/admin/live?${new URLSearchParams(query)}`));
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = () => {
    if (source?.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
    isWanted = false;
    update();
    say("The live stream was rejected. Sign in again, or close other live streams.");
  };
}

function close() {
  source?.close();
  if (source !== null) say(byId("live-rows").childElementCount ? "Paused." : "");
  source = null;
}

const say = (text) => (byId("live-hint").textContent = text);

function show({ seen, seconds, rows }) {
  if (rows.length === 0) return;
  const perSecond = Math.round(seen / seconds);
  say(rows.length < seen ? `Showing ${count(Math.round(rows.length / seconds))} of ${count(perSecond)}/s` : `${count(perSecond)}/s`);
  const list = byId("live-rows");
  for (const row of rows) list.prepend(rowItem(row));
  while (list.childElementCount > MOST_ROWS) list.lastElementChild.remove();
}

function rowItem(row) {
  const parts = [
    h("span", { class: "time" }, clock(row.at)),
    row.kind === "event" ? h("span", { class: "pill" }, "event") : h("span", { class: `pill ${TONES[row.outcome] ?? ""}` }, WORDS[row.outcome] ?? row.outcome),
    h("b", { class: "clip", title: row.name ?? "" }, row.name ?? "without a name"),
    h("code", { class: "visitor-id clip", title: row.user ?? "" }, row.user ?? ""),
    h("span", { class: "clip" }, [row.rule, row.variation].filter((name) => name !== null).join(" · ")),
    row.reason === null ? null : h("span", { class: "hint" }, row.reason),
  ];
  if (row.kind === "event") return h("li", { class: "live-row" }, parts);
  const choose = () => explain(row.name, row.user);
  return h("li", {}, h("button", { type: "button", class: "live-row", onclick: choose, title: "Explain this decision" }, parts));
}
