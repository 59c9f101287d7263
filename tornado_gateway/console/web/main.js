// The operators' console: tabs, and keeping the one in view fresh.

import { shownRange } from "./charts.js";
import { ask, byId, clock, h, reconcile, useEnvironment } from "./dom.js";
import { refreshEvents, startEvents } from "./events.js";
import { refreshExperiments } from "./experiments.js";
import { chooseFeature, fillFeatureChoice, openAddress, startExplain } from "./explain.js";
import { refreshFeatures, startFeatures } from "./features.js";
import { followLive, reopen, startLive } from "./live.js";
import { showOverview, showState, startOverview } from "./overview.js";
import { enter, setState, startSession, watchSession } from "./session.js";
import { fillVersionChoice, refreshSettings, showPin, startSettings } from "./settings.js";
import { fillSimulatedFeatures, startSimulator } from "./simulator.js";
import { refreshUsage } from "./usage.js";

const TABS = ["overview", "features", "experiments", "explain", "simulator", "events", "settings"];
const OVERVIEW_MS = 1000;
const EVENTS_MS = 2000;

let tab = null;
let timer = 0;
let readAt = null; // when the numbers in view were read

// --- Tabs ---

const nameInAddress = () => location.hash.slice(1).split("&")[0];

/** The tab that the address names; other names, such as that of the skip link, change nothing. */
const tabOfAddress = () => {
  const name = nameInAddress();
  return TABS.includes(name) ? name : (tab ?? TABS[0]);
};

function show(name) {
  const isNew = name !== tab;
  tab = name;
  for (const other of TABS) {
    const button = byId(`tab-${other}`);
    button.setAttribute("aria-selected", String(other === name));
    button.tabIndex = other === name ? 0 : -1;
    if (other === name) button.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a phone the tabs scroll
    byId(other).hidden = other !== name;
  }
  followLive(name === "events");
  if (isNew) scrollTo(0, 0);
  if (name === "explain") openAddress();
  refresh();
}

function choose(name) {
  if (nameInAddress() !== name) history.pushState(null, "", `#${name}`);
  if (byId("sign-in").hidden) show(name);
}

function followAddress() {
  if (location.hash.startsWith("#token=")) startSession();
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

function explainFeature(key, user = null) {
  choose("explain");
  chooseFeature(key);
  if (user === null) return;
  byId("explain-id").value = user;
  byId("explain-form").requestSubmit();
}

// --- Environments ---

/** Fill the choice with the environments of ENVIRONMENTS_FILE. Without the file there is no choice. */
function showEnvironments({ environments = [] }) {
  byId("environment-choice").hidden = byId("charts-scope").hidden = environments.length < 2;
  const names = environments.map((each) => each.name);
  reconcile(byId("environment"), names, (name) => name, (name) => h("option", { value: name }, name));
  useEnvironment(byId("environment").value);
}

function chooseEnvironment(event) {
  useEnvironment(event.target.value);
  reopen();
  refresh();
}

// --- Refreshing ---

function stopRefreshing() {
  clearTimeout(timer);
}

/** Load the tab in view, and again after a while. The overview is always loaded, because the head of the page shows it. */
async function refresh() {
  stopRefreshing();
  const shown = tab;
  try {
    const overview = await ask(`/admin/overview?range=${shownRange()}`);
    readAt = Date.now() / 1000;
    document.body.classList.remove("silent");
    showState(overview);
    showEnvironments(overview.status);
    showPin(overview.status);
    if (shown === "overview") showOverview(overview);
    if (shown === "events") await refreshEvents();
    if (shown === "settings") await refreshSettings();
    if (shown === "explain") fillVersionChoice(overview);
    if (shown === "experiments") await refreshExperiments();
    if (shown === "features" || shown === "explain" || shown === "simulator") {
      const features = await refreshFeatures(overview);
      if (features !== null) {
        fillFeatureChoice(features);
        fillSimulatedFeatures(features);
      }
      if (shown === "features") await refreshUsage();
    }
  } catch (error) {
    if (error.status === 401 || error.status === 403) {
      await enter();
      return;
    }
    if (error.status === 404) useEnvironment(""); // it was removed from the file
    const isSilent = error.status === 0 && readAt !== null;
    document.body.classList.toggle("silent", isSilent);
    setState("bad", isSilent ? `${error.message}, the numbers are of ${clock(readAt)}` : error.message);
  }
  if (shown !== tab || document.hidden) return;
  stopRefreshing();
  timer = setTimeout(refresh, shown === "overview" ? OVERVIEW_MS : EVENTS_MS);
}

function signedOut() {
  followLive(false);
  stopRefreshing();
  for (const name of TABS) byId(name).hidden = true;
}

// --- Start ---

byId("environment").addEventListener("change", chooseEnvironment);
for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => choose(name));
document.querySelector(".tabs").addEventListener("keydown", moveAlongTabs);
document.addEventListener("keydown", shortcut);
document.addEventListener("visibilitychange", () => document.hidden || tab === null || refresh());
addEventListener("popstate", followAddress);
addEventListener("hashchange", followAddress);
startOverview(refresh);
startFeatures(explainFeature);
startExplain();
startSimulator();
startEvents(refresh);
startSettings(refresh);
startLive(explainFeature);
watchSession(() => show(tabOfAddress()), signedOut);
startSession();
