// The operators' console. Each tab has a function that loads and one that shows; the tab in view is kept fresh.

import { chart } from "./charts.js";
import { ago, ask, byId, clock, count, duration, h, json, moment, plural, post, reconcile, replace } from "./dom.js";

const TABS = ["overview", "features", "explain", "events"];
const OVERVIEW_MS = 1000;
const EVENTS_MS = 2000;
const KINDS = { rollout: "Rollout", ab: "A/B test", personalize: "Personalisation", other: "Other" };

let tab = null;
let timer = 0;
let isPaused = false;
let features = null; // what /admin/features said last
let featuresHash = null; // of the settings that it was about

// --- signing in --------------------------------------------------------------

async function enter() {
  let isSignedIn = true;
  try {
    await ask("/admin/session");
  } catch (error) {
    if (error.status !== 401) {
      setState("bad", error.message);
      timer = setTimeout(enter, OVERVIEW_MS * 3);
      return;
    }
    isSignedIn = false;
  }
  byId("sign-in").hidden = isSignedIn;
  document.querySelector(".tabs").hidden = !isSignedIn;
  byId("sign-out").hidden = !isSignedIn;
  if (isSignedIn) {
    show(tabOfAddress());
    return;
  }
  stopRefreshing();
  for (const name of TABS) byId(name).hidden = true;
  setState("warn", "signed out");
  byId("token").focus();
}

async function signIn(token) {
  await post("/admin/session", { token });
  byId("sign-in-problem").textContent = "";
  await enter();
}

async function signInWithForm(event) {
  event.preventDefault();
  const field = byId("token");
  try {
    await signIn(field.value);
    field.value = "";
    byId(`tab-${tab}`).focus();
  } catch (error) {
    byId("sign-in-problem").textContent = error.message;
    field.select();
  }
}

/** The token of a link from `tornado-gateway console-url`. It leaves the address bar before anything else happens. */
function takeTokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token !== null) history.replaceState(null, "", location.pathname + location.search);
  return token;
}

async function start() {
  const token = takeTokenFromAddress();
  if (token === null) return enter();
  try {
    await signIn(token);
  } catch (error) {
    byId("sign-in-problem").textContent = `The link did not sign in: ${error.message}`;
    await enter();
  }
}

async function signOut() {
  await post("/admin/session", {}, "DELETE");
  await enter();
}

// --- tabs --------------------------------------------------------------------

/** The tab that the address names; other names, such as that of the skip link, change nothing. */
const tabOfAddress = () => {
  const name = location.hash.slice(1);
  return TABS.includes(name) ? name : (tab ?? TABS[0]);
};

function show(name) {
  const isNew = name !== tab;
  tab = name;
  for (const other of TABS) {
    const button = byId(`tab-${other}`);
    button.setAttribute("aria-selected", String(other === name));
    button.tabIndex = other === name ? 0 : -1;
    byId(other).hidden = other !== name;
  }
  if (isNew) scrollTo(0, 0);
  refresh();
}

function choose(name) {
  if (location.hash !== `#${name}`) history.pushState(null, "", `#${name}`);
  if (byId("sign-in").hidden) show(name);
}

function followAddress() {
  if (location.hash.startsWith("#token=")) start();
  else if (tab !== null) choose(tabOfAddress());
}

function moveAlongTabs(event) {
  const at = TABS.indexOf(tab);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: TABS.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const name = TABS[(to + TABS.length) % TABS.length];
  choose(name);
  byId(`tab-${name}`).focus();
}

function shortcut(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const name = TABS[Number(event.key) - 1];
  if (name) {
    choose(name);
    byId(`tab-${name}`).focus();
  } else if (event.key === "/") {
    event.preventDefault();
    choose("features");
    byId("filter").focus();
  }
}

// --- keeping fresh -----------------------------------------------------------

function stopRefreshing() {
  clearTimeout(timer);
}

/** Load what is in view, and again after a while. The overview is loaded always: the head of the page shows it. */
async function refresh() {
  stopRefreshing();
  const shown = tab;
  try {
    const overview = await ask("/admin/overview");
    showState(overview);
    if (shown === "overview") showOverview(overview);
    if (shown === "events" && !isPaused) showEvents(await ask("/admin/events"), overview);
    if (shown === "features" || shown === "explain") await refreshFeatures(overview);
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      await enter();
      return;
    }
    setState("bad", error.message);
  }
  if (shown !== tab || document.hidden) return;
  stopRefreshing();
  timer = setTimeout(refresh, shown === "overview" ? OVERVIEW_MS : EVENTS_MS);
}

function setState(tone, text) {
  byId("state").className = `state ${tone}`;
  const element = byId("state-text");
  if (element.textContent !== text) element.textContent = text;
}

function showState({ status, account, queue }) {
  const settings = status.settings;
  const version = settings?.version ?? null;
  const badge = byId("dead-badge");
  badge.hidden = !queue.dead;
  badge.textContent = count(queue.dead);
  badge.title = `${plural(queue.dead, "dead event")}`;
  if (status.stuck) setState("bad", status.stuck.message);
  else if (version === null) setState("warn", "no settings yet");
  else if (status.last_error) setState("warn", `account ${account.id} · ${status.last_error}`);
  else setState("good", `account ${account.id} · settings version ${version} · ${plural(account.features, "feature")}`);
}

// --- overview ----------------------------------------------------------------

const charts = [
  chart("Requests", "per second", [
    { name: "requests", label: "requests", tone: "accent" },
    { name: "decisions", label: "decisions", tone: "second" },
  ]),
  chart("Events received", "per second", [
    { name: "received", label: "received", tone: "accent" },
    { name: "delivered", label: "delivered", tone: "good" },
    { name: "rejected", label: "rejected", tone: "bad" },
  ]),
  chart("Events waiting", "in the queue", [
    { name: "waiting", label: "waiting", tone: "second" },
    { name: "dead", label: "dead", tone: "bad" },
  ]),
  chart("Latency", "ms, median", [
    { name: "p50_ms", label: "median", tone: "accent" },
    { name: "p99_ms", label: "99 %", tone: "second" },
    { name: "lag_ms", label: "loop lag", tone: "warn" },
  ]),
];

function showOverview(overview) {
  for (const each of charts) each.draw(overview.samples);
  showLedger(overview.status.events);
  showPanels(overview);
  showWorkers(overview);
}

const LEDGER = [
  ["delivered", "good"],
  ["waiting", "second"],
  ["dead", "bad"],
  ["rejected", "warn"],
  ["discarded", "bad"],
];

function showLedger(events) {
  const parts = LEDGER.filter(([name]) => events[name] > 0);
  replace(byId("ledger-bar"), parts.map(([name, tone]) => h("i", { class: `tone-${tone}`, vars: { "--share": events[name] } })));
  replace(
    byId("equation"),
    h("span", {}, h("b", {}, count(events.received)), " received ="),
    LEDGER.map(([name, tone], index) =>
      h("span", {}, h("i", { class: `swatch tone-${tone}` }), h("b", {}, count(events[name])), ` ${name}`, index < LEDGER.length - 1 ? " +" : ""),
    ),
  );
}

function showPanels({ at, status, queue, location: database, store, account }) {
  const { settings, last_poll: poll, last_flush: flush } = status;
  replace(
    byId("panels"),
    panel("Settings", settings?.version === null ? ["none yet", "warn"] : ["loaded", "good"], [
      ["Account", account.id ?? "–"],
      ["Version", settings?.version ?? "–"],
      ["Hash", settings?.hash ?? "–"],
      ["Confirmed", settings?.age_seconds == null ? "–" : `${duration(settings.age_seconds)} ago`],
      ["Source", settings?.source ?? "–"],
      poll?.error ? ["Poll", poll.error, "bad"] : ["Last poll", ago(poll?.at, at)],
    ]),
    panel("Delivery", delivery(status), [
      ...(status.stuck ? [["Problem", status.stuck.message, "bad"]] : []),
      ["Last flush", ago(flush?.at, at)],
      flush?.error ? ["Error", flush.error, "bad"] : ["Sent in it", count(flush?.events ?? 0)],
      ["Oldest waits", oldest(queue, at)],
      ["Dead letters", count(queue.dead)],
    ]),
    panel("Store", store.is_up ? ["up", "good"] : ["down", "bad"], [
      ["Kind", store.kind === "redis" ? "Redis" : "embedded (SQLite)"],
      store.error ? ["Error", store.error, "bad"] : ["Commits", "working"],
      ["Workers", count(status.workers.length)],
      ["Up for", duration(status.uptime_seconds)],
      ["Release", status.version],
    ]),
    panel("Location", database.available ? ["loaded", "good"] : ["none", ""], [
      ["Database", database.type ?? "not configured"],
      ["Built", database.built_at ? moment(database.built_at).slice(0, 10) : "–"],
      ["Age", duration(database.age_seconds)],
      ...(database.error ? [["Error", database.error, "bad"]] : []),
    ]),
  );
}

const delivery = ({ stuck, last_flush: flush }) =>
  stuck ? ["stuck", "bad"] : flush?.error ? ["failing", "bad"] : ["working", "good"];

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

// --- features ----------------------------------------------------------------

async function refreshFeatures(overview) {
  const hash = overview.status.settings?.hash ?? null;
  if (hash === featuresHash) return;
  features = (await ask("/admin/features")).features;
  featuresHash = hash;
  byId("feature-list").replaceChildren();
  showFeatures();
  fillFeatureChoice();
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
    h("dt", {}, "Looks at"),
    h("dd", {}, needs(feature.needs)),
    feature.impact_campaign ? [h("dt", {}, "Impact campaign"), h("dd", {}, feature.impact_campaign)] : null,
  ),
  h("p", {}, h("button", { type: "button", onclick: () => explainFeature(feature.key) }, "Explain for a visitor")),
];

function needs({ location: place, device, lists }) {
  const all = [place && "location", device && "device", ...lists.map((list) => `list ${list}`)].filter(Boolean);
  return all.join(", ") || "only what the caller sends";
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
    h("div", { class: "who" }, h("h4", {}, "Who"), h("ul", { class: "words" }, words(rule.segment)), traffic(rule.percent)),
    variationTable(rule),
    rule.group ? h("p", {}, h("span", { class: "pill" }, `Group ${rule.group.name ?? rule.group.id}`), ` ${rule.group.text}.`) : null,
  );

const traffic = (percent) => h("p", { class: "share" }, meter(percent), percent === 100 ? "all of them" : `${percent} % of them`);

const meter = (percent) =>
  h("span", { class: "meter", "aria-hidden": "true" }, h("i", { vars: { "--share": `${Number(percent) || 0}%` } }));

/** A tree of words as nested list items. */
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
    { class: "scroll", role: "region", tabindex: "0", "aria-label": `Variations of ${rule.campaign.name}` },
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

const variables = (list) =>
  list.length
    ? h("div", { class: "variables" }, list.map((item) => h("code", {}, h("span", { class: "key" }, `${item.key} `), json(item.value))))
    : h("span", { class: "hint" }, "none");

// --- explain -----------------------------------------------------------------

function fillFeatureChoice() {
  const choice = byId("explain-feature");
  const before = choice.value;
  replace(choice, h("option", { value: "" }, "All features"), features.map((feature) => h("option", { value: feature.key }, feature.key)));
  choice.value = features.some((feature) => feature.key === before) ? before : "";
}

function explainFeature(key) {
  choose("explain");
  byId("explain-feature").value = key;
  byId("explain-id").focus();
}

/** The body of the request; throws with the field that is wrong. */
function visitor() {
  const fields = { id: byId("explain-id").value.trim() };
  const texts = { featureKey: "explain-feature", ipAddress: "explain-ip", userAgent: "explain-agent", bucketingSeed: "explain-seed" };
  for (const [name, id] of Object.entries(texts)) if (byId(id).value.trim()) fields[name] = byId(id).value.trim();
  if (!fields.id) throw Object.assign(new Error("User id: who is asking?"), { field: byId("explain-id") });
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
    // said below
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
    showExplanation(await post("/admin/explain", visitor()));
  } catch (error) {
    problem.textContent = error.message;
    error.field?.setAttribute("aria-invalid", "true");
    error.field?.focus();
    if (error.status === 401) await enter();
  }
  result.setAttribute("aria-busy", "false");
}

function showExplanation({ visitor: who, decisions }) {
  const isOne = decisions.length === 1;
  const on = decisions.filter((decision) => decision.enabled).length;
  replace(
    byId("explanation"),
    h(
      "p",
      { class: "visitor card" },
      fact("User", who.id),
      fact("Visitor", who.uuid),
      fact("Location", place(who.location, LOCATION_FACTS)),
      fact("Device", place(who.device, DEVICE_FACTS)),
      isOne ? null : fact("Enabled", `${on} of ${decisions.length}`),
    ),
    decisions.map((decision) => decisionCard(decision, isOne)),
  );
}

const fact = (name, value) => h("span", {}, `${name} `, h("b", {}, value ?? "–"));

const LOCATION_FACTS = ["city", "region", "country"];
const DEVICE_FACTS = ["device_type", "device", "os", "os_version", "browser_string", "browser_version"];

function place(facts, names) {
  if (!facts) return "not given";
  return names.map((name) => facts[name]).filter(Boolean).join(", ") || "unknown";
}

const REASONS = {
  rollout: "by a rollout rule",
  experiment: "by an experiment rule",
  whitelisted: "whitelisted",
  stored: "as decided earlier",
  holdout: "withheld by a holdout",
  "no rule matched": "no rule matched",
  "feature not found": "there is no such feature",
  error: "an error",
};

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
    item(step.passed, step, decision, step.bucket === null ? "Traffic: there is no user id" : `Traffic: bucket ${step.bucket} of 100, ${step.limit} % are let in`),
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
      step.winner == null ? "nobody wins" : `campaign ${step.winner} wins${step.bucket ? ` at bucket ${step.bucket} of 10,000` : ""}`,
    ),
  stored: (step, decision) => item(null, step, decision, `Stored decision for ${step.key}: ${step.result}`),
  end: (step, decision) => item(step.enabled, step, decision, h("b", {}, step.enabled ? "Enabled" : "Disabled"), h("span", { class: "hint" }, REASONS[step.reason] ?? step.reason)),
};

function condition(step, decision) {
  const has = "actual" in step ? (step.missing ? "the visitor has none" : `the visitor has ${json(step.actual)}`) : null;
  return item(step.result, step, decision, step.words, has ? h("span", { class: "has" }, has) : null);
}

const stepItem = (step, decision) => {
  const tell = STEPS[step.step];
  return tell ? tell(step, decision) : item(null, step, decision, JSON.stringify(step));
};

/** Where a bucket lies among ranges: shares in percent, and the position in percent. */
const buckets = (shares, at) =>
  h(
    "li",
    { class: "buckets", "aria-hidden": "true" },
    shares.map(([share, isHit]) => h("i", { class: isHit ? "hit" : "", vars: { "--share": `${Math.min(share, 100)}%` } })),
    h("b", { vars: { "--at": `${at}%` } }),
  );

// --- events ------------------------------------------------------------------

function showEvents({ depth, dead, recent }, { status, worker }) {
  byId("dead-hint").textContent = dead.length
    ? "Upstream refused them for good. Once the cause is gone, send them again."
    : "None. What upstream refuses for good would be kept here.";
  byId("requeue-all").hidden = !dead.length;
  reconcile(byId("dead-letters"), dead, (letter) => `${letter.id}@${letter.at}`, letterItem);
  byId("recent-hint").textContent = status.workers.length > 1 ? `stored by worker ${worker}` : `${plural(depth.waiting, "event")} waiting`;
  if (!recent.length) replace(byId("recent"), h("li", { "data-key": "none", class: "hint" }, "None since this worker has started."));
  else reconcile(byId("recent"), recent, eventKey, eventItem);
}

const eventKey = (event) => `${event.at}${event.name}${event.document?.d?.msgId}${event.campaign}${event.variation}`;

const letterItem = (letter) =>
  h(
    "li",
    {},
    unfolding(
      [
        h("b", {}, firstName(letter.body)),
        letter.count > 1 ? h("span", {}, plural(letter.count, "event")) : null,
        h("span", { class: "time" }, moment(letter.at)),
        h("span", { class: "reason" }, letter.reason),
      ],
      () => letter.body.split("\n").map(pretty).join("\n"),
    ),
    h("button", { type: "button", onclick: (event) => requeue([letter.id], event.target) }, "Re-queue"),
  );

const eventItem = (event) =>
  h(
    "li",
    {},
    unfolding(
      [
        h("span", { class: "time" }, clock(event.at)),
        h("b", {}, event.name ?? "without a name"),
        event.campaign === null ? null : h("span", {}, `campaign ${event.campaign} variation ${event.variation}`),
        h("code", { class: "visitor-id" }, event.visitor ?? ""),
      ],
      () => JSON.stringify(event.document, null, 2),
    ),
  );

/** Details whose text is made when they are opened. */
function unfolding(summary, text) {
  const body = h("pre", { tabindex: "0" });
  const details = h("details", {}, h("summary", {}, summary), body);
  details.addEventListener("toggle", () => {
    if (details.open && !body.textContent) body.textContent = text();
  });
  return details;
}

function firstName(body) {
  try {
    return JSON.parse(body.split("\n")[0]).d.event.name;
  } catch {
    return "event";
  }
}

function pretty(line) {
  try {
    return JSON.stringify(JSON.parse(line), null, 2);
  } catch {
    return line;
  }
}

async function requeue(ids, button) {
  button.disabled = true;
  byId("events-problem").textContent = "";
  try {
    const { requeued } = await post("/admin/events/requeue", { ids });
    byId("events-done").textContent = `${plural(requeued, "event")} re-queued at ${clock(Date.now() / 1000)}.`;
    await refresh();
    byId("tab-events").focus();
  } catch (error) {
    byId("events-problem").textContent = error.message;
  }
  button.disabled = false;
}

function pause(event) {
  isPaused = !isPaused;
  event.target.setAttribute("aria-pressed", String(isPaused));
  event.target.textContent = isPaused ? "Go on" : "Pause";
}

// --- start -------------------------------------------------------------------

for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => choose(name));
document.querySelector(".tabs").addEventListener("keydown", moveAlongTabs);
document.addEventListener("keydown", shortcut);
document.addEventListener("visibilitychange", () => document.hidden || tab === null || refresh());
addEventListener("popstate", followAddress);
addEventListener("hashchange", followAddress);
byId("sign-in-form").addEventListener("submit", signInWithForm);
byId("sign-out").addEventListener("click", signOut);
byId("filter").addEventListener("input", showFeatures);
byId("explain-form").addEventListener("submit", explain);
byId("requeue-all").addEventListener("click", (event) => requeue(null, event.target));
byId("pause").addEventListener("click", pause);
replace(byId("charts"), charts.map((each) => each.element));
start();
