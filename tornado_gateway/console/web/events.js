// Dead letters and recent events.

import { ask, byId, clock, h, moment, plural, post, reconcile, replace } from "./dom.js";

let isPaused = false;
let onRequeued = null;

/** `refresh` is called after dead letters have been re-queued. */
export function startEvents(refresh) {
  onRequeued = refresh;
  byId("requeue-all").addEventListener("click", (event) => requeue(null, event.target));
  byId("pause").addEventListener("click", pause);
}

export async function refreshEvents(overview) {
  if (!isPaused) showEvents(await ask("/admin/events"), overview);
}

function showEvents({ depth, dead, recent }, { status, worker }) {
  byId("dead-hint").textContent = dead.length
    ? "VWO rejected these events permanently. Fix the cause, then re-queue them."
    : "No dead letters. Events that VWO rejects permanently appear here.";
  byId("requeue-all").hidden = !dead.length;
  reconcile(byId("dead-letters"), dead, (letter) => `${letter.id}@${letter.at}`, letterItem);
  byId("recent-hint").textContent = status.workers.length > 1 ? `stored by worker ${worker}` : `${plural(depth.waiting, "event")} waiting`;
  if (!recent.length) replace(byId("recent"), h("li", { "data-key": "none", class: "hint" }, "None since this worker started."));
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

/** Details whose text is created when they are opened. */
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
    await onRequeued();
    byId("tab-events").focus();
  } catch (error) {
    byId("events-problem").textContent = error.message;
  }
  button.disabled = false;
}

function pause(event) {
  isPaused = !isPaused;
  event.target.setAttribute("aria-pressed", String(isPaused));
  event.target.textContent = isPaused ? "Resume" : "Pause";
}
