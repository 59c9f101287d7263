// Dead letters and recent events.

import { letterActions, refreshGroups, responseLine, startDeadLetters } from "./dead_letters.js";
import { ask, byId, clock, h, moment, plural, pretty, queued, reconcile, replace } from "./dom.js";

const LISTED_BYTES = 4096; // of the body of a letter in the list

let isPaused = false;

/** `refresh` is called after dead letters have been requeued. */
export function startEvents(refresh) {
  startDeadLetters(refresh);
  byId("pause").addEventListener("click", pause);
}

export async function refreshEvents() {
  if (isPaused) return;
  const events = await ask("/admin/events");
  showEvents(events);
  await refreshGroups(events.depth, events.dead);
}

function showEvents({ depth, dead, next, recent, unreadable }) {
  byId("dead-hint").textContent = deadHint(depth, dead.length > 0, next !== null, unreadable);
  reconcile(byId("dead-letters"), dead, (letter) => `${letter.id}@${letter.at}`, letterItem);
  byId("recent-hint").textContent = depth.last_known ? `Events waiting: ${queued(depth, "waiting")}` : `${plural(depth.waiting, "event")} waiting`;
  if (!recent.length) replace(byId("recent"), h("li", { "data-key": "none", class: "hint" }, "None since the gateway started."));
  else reconcile(byId("recent"), recent, eventKey, eventItem);
}

function deadHint(depth, hasSome, hasMore, unreadable) {
  const shown = hasSome ? "Only those of this machine are shown." : "";
  if (unreadable) return `Dead events: ${queued(depth, "dead")}. Not all can be read: ${unreadable}. ${shown}`;
  if (depth.last_known) return `Dead events: ${queued(depth, "dead")}. The store cannot be read.`;
  if (!hasSome) return "No dead letters. Events that VWO rejects permanently appear here.";
  return `VWO rejected these events permanently. Fix the cause, then requeue them, edit them, or delete them.${hasMore ? " Only the oldest are shown." : ""}`;
}

const eventKey = (event) => `${event.at}${event.name}${event.document?.d?.msgId ?? event.bytes}${event.campaign}${event.variation}`;

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
        responseLine(letter.response),
      ],
      async () => (await complete(letter)).split("\n").map(prettyLine).join("\n"),
    ),
    letterActions(letter, () => complete(letter)),
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
      async () => (event.document === null ? `${event.bytes} bytes` : pretty(event.document)),
    ),
  );

/** The list has only the beginning of a large letter. */
async function complete(letter) {
  if (letter.bytes <= LISTED_BYTES) return letter.body;
  const { dead } = await ask(`/admin/events?first=${encodeURIComponent(letter.id)}&limit=1&complete=true`);
  return dead[0]?.id === letter.id ? dead[0].body : letter.body;
}

/** Details whose text is created when they are opened. */
function unfolding(summary, text) {
  const body = h("pre", { tabindex: "0" });
  const details = h("details", {}, h("summary", {}, summary), body);
  details.addEventListener("toggle", async () => {
    if (!details.open || body.textContent) return;
    try {
      body.textContent = await text();
    } catch (error) {
      body.textContent = error.message;
    }
  });
  return details;
}

function firstName(body) {
  try {
    return JSON.parse(body.split("\n")[0]).d.event.name;
  } catch {
    return /"name":"([^"\\]{1,100})"/.exec(body)?.[1] ?? "event"; // the list has only the beginning of a large event
  }
}

function prettyLine(line) {
  try {
    return pretty(JSON.parse(line));
  } catch {
    return line;
  }
}

function pause(event) {
  isPaused = !isPaused;
  event.target.setAttribute("aria-pressed", String(isPaused));
  event.target.textContent = isPaused ? "Resume" : "Pause";
}
