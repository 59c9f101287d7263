// The overview: charts, the event flow, and the state of settings, delivery, store and workers.

import { chart, rangeButtons, useMarkers } from "./charts.js";
import { ago, byId, count, duration, h, moment, plural, queued, replace, withCode } from "./dom.js";
import { setState } from "./session.js";

/** The head of the page. */
export function showState({ status, account, queue }) {
  const version = status.settings?.version ?? "–";
  const badge = byId("dead-badge");
  badge.hidden = queue.dead === 0;
  badge.textContent = queue.dead === null ? "?" : count(queue.dead);
  badge.title = `dead events: ${queued(queue, "dead")}`;
  const about = [`account ${account.id ?? "–"}`, `settings version ${version}`, plural(account.features, "feature")];
  setState(TONES[status.verdict], status.problems.length ? headline(status.problems) : about.join(" · "));
}

const TONES = { ok: "good", warning: "warn", critical: "bad" };

const headline = ([first, ...others]) => (others.length ? `${named(first)} · ${others.length} more` : named(first));

const named = ({ environment, message }) => (environment ? `${environment}: ${message}` : message);

const charts = [
  chart("Requests", "per second", "/s", [
    { name: "requests", label: "requests", tone: "accent" },
    { name: "decisions", label: "decisions", tone: "second" },
  ]),
  chart("Events received", "per second", "/s", [
    { name: "received", label: "received", tone: "accent" },
    { name: "delivered", label: "delivered", tone: "good" },
    { name: "rejected", label: "rejected", tone: "warn" },
    { name: "lost", label: "lost", tone: "bad" },
  ]),
  chart("Events waiting", "in the queue", "", [
    { name: "waiting", label: "waiting", tone: "second" },
    { name: "dead", label: "dead", tone: "bad" },
  ]),
  chart("Latency", "ms, median", " ms", [
    { name: "p50_ms", label: "median", tone: "accent" },
    { name: "p99_ms", label: "p99", tone: "second" },
    { name: "lag_ms", label: "loop lag", tone: "warn" },
  ]),
];

/** `refresh` is called after another range has been chosen. */
export function startOverview(refresh) {
  replace(byId("charts"), rangeButtons(refresh), charts.map((each) => each.element));
}

export function showOverview(overview) {
  useMarkers(overview.markers);
  for (const each of charts) each.draw(overview.samples, overview.at);
  showLedger(overview.status.events);
  showProblems(overview);
  showPanels(overview);
  showWorkers(overview);
}

const LEDGER = [
  ["delivered", "good"],
  ["waiting", "second"],
  ["dead", "bad"],
  ["rejected", "warn"],
  ["discarded", "bad"],
  ["lost", "bad"],
  ["unknown", "unknown"],
];

/** Events that INTERNAL_EVENTS discards are no fault. */
const toneOf = (name, tone, events) =>
  name === "discarded" && events.discarded && events.discarded === events.discarded_internal ? "unknown" : tone;

function showLedger(events) {
  const terms = LEDGER.map(([name, tone]) => [name, toneOf(name, tone, events)]).filter(([name]) => name !== "unknown" || events.unknown || events.last_known);
  const parts = terms.filter(([name]) => events[name] > 0);
  replace(byId("ledger-bar"), parts.map(([name, tone]) => h("i", { class: `tone-${tone}`, vars: { "--share": events[name] } })));
  replace(
    byId("equation"),
    h("span", {}, h("b", {}, count(events.received)), " received", events.elsewhere ? ` + ${count(events.elsewhere)} elsewhere =` : " ="),
    terms.map(([name, tone], index) =>
      h("span", {}, h("i", { class: `swatch tone-${tone}` }), h("b", {}, events[name] === null ? "?" : count(events[name])), ` ${name}`, index < terms.length - 1 ? " +" : ""),
    ),
  );
}

function showProblems({ at, status: { problems, verdict } }) {
  byId("problems").hidden = !problems.length;
  byId("problems").classList.toggle("bad", verdict === "critical");
  replace(byId("problem-list"), problems.map((problem) => problemItem(problem, at)));
}

const problemItem = (problem, at) =>
  h(
    "li",
    {},
    h(
      "div",
      {},
      h("span", { class: `pill ${TONES[problem.severity]}` }, problem.severity),
      " ",
      h("b", {}, named(problem)),
      h("p", { class: "hint" }, withCode(problem.remedy)),
      h("p", { class: "hint" }, `since ${moment(problem.since)} (${duration(at - problem.since)}) · `, h("a", { href: problem.runbook, target: "_blank", rel: "noopener" }, "Runbook")),
    ),
  );

function showPanels({ at, status, queue, location: database, store, account }) {
  const { settings, last_poll: poll, last_flush: flush } = status;
  const pill = (area, word, requests) => pillOf(status, area, word, requests);
  replace(
    byId("panels"),
    panel("Settings", pill("settings", "loaded", poll), [
      ["Account", account.id ?? "–"],
      ["Version", settings?.version ?? "–"],
      ["Hash", settings?.hash ?? "–"],
      ["Confirmed", settings?.age_seconds == null ? "–" : `${duration(settings.age_seconds)} ago`],
      ["Source", sourceOf(settings)],
      poll?.error ? ["Poll", poll.error, "bad"] : ["Last poll", ago(poll?.at, at)],
    ]),
    panel("Delivery", pill("delivery", "working", flush), [
      ...(status.stuck ? [["Problem", status.stuck.message, "bad"]] : []),
      ["Last flush", ago(flush?.at, at)],
      flush?.error ? ["Error", flush.error, "bad"] : ["Events in last flush", count(flush?.events ?? 0)],
      ["Oldest waiting", oldest(queue, at)],
      ...(queue.last_known ? [["Waiting", queued(queue, "waiting"), "bad"]] : []),
      ["Dead letters", queued(queue, "dead"), queue.last_known ? "bad" : null],
    ]),
    panel("Store", pill("store", "up"), [
      ["Kind", store.kind === "redis" ? "Redis" : "embedded (SQLite)"],
      store.error ? ["Error", store.error, "bad"] : ["Writes", "ok"],
      ["Workers", count(status.workers.length)],
      ["Up for", duration(status.uptime_seconds)],
      ["Release", status.version],
    ]),
    panel("Location", pill("location", database.available ? "loaded" : "none"), [
      ["Database", database.type ?? "not configured"],
      ["Built", database.built_at ? moment(database.built_at).slice(0, 10) : "–"],
      ["Age", duration(database.age_seconds)],
      ...(database.error ? [["Error", database.error, "bad"]] : []),
    ]),
  );
}

const SOURCES = ["file", "store"]; // any other one is VWO

const OF_VWO = /^(key|upstream)-/; // in the panel whose requests have failed
const AREAS = {
  settings: /^(no-settings|settings-)/,
  delivery: /^(events-|queue-)/,
  store: /^(redis-|store-|damaged-)/,
  location: /^geo-/,
};
const WORDS = { "no-settings": "none yet", "events-stuck": "stuck", "events-unknown": "unknown", "geo-old": "old" };

/** The word and the tone of a panel: those of the first problem of its area, which is the most severe one. */
function pillOf({ problems }, area, word, requests) {
  const name = byId("environment").value || null;
  const patterns = [AREAS[area], ...(requests?.error ? [OF_VWO] : [])];
  const concerns = ({ code, environment }) =>
    patterns.some((pattern) => pattern.test(code)) && (environment === null || name === null || environment === name);
  const first = problems.find(concerns);
  if (first) return [WORDS[first.code] ?? "problem", TONES[first.severity]];
  return [word, word === "none" ? "" : "good"];
}

function sourceOf(settings) {
  if (!settings?.source) return "–";
  return SOURCES.includes(settings.source) ? settings.source : "VWO";
}

function oldest({ oldest_at: since, oldest_unknown_since: unknown }, at) {
  const age = since ? duration(at - since) : unknown ? "unknown" : "–";
  return unknown ? `${age} (last read ${ago(unknown, at)})` : age;
}

const panel = (title, [word, tone], facts) =>
  h(
    "section",
    { class: "card panel" },
    h("h3", {}, title, h("span", { class: `pill ${tone}` }, word)),
    h(
      "dl",
      { class: "facts" },
      facts.map(([name, value, kind]) => [h("dt", {}, name), h("dd", { class: kind }, String(value))]),
    ),
  );

function showWorkers({ status, worker: self }) {
  replace(
    byId("workers"),
    status.workers.map((worker) =>
      h(
        "tr",
        {},
        h("td", {}, worker.slot),
        h("td", { class: "mono" }, worker.pid, worker.pid === self ? h("span", { class: "hint" }, " this") : null),
        h("td", {}, worker.state ?? "serving"),
        h("td", { class: "number" }, duration(worker.uptime_seconds)),
        h("td", { class: "number" }, count(worker.requests?.total)),
        h("td", { class: "number" }, count(worker.connections)),
        h("td", { class: "number" }, count(worker.in_flight)),
        h("td", { class: "number" }, count(worker.events?.waiting)),
        h("td", { class: "mono" }, worker.settings?.slice(0, 8) ?? "–"),
      ),
    ),
  );
}
