// Dead letters by event and reason, and what can be done with them: requeue, edit, delete, export.

import { addressOf, ask, byId, clock, h, moment, plural, post, pretty, reconcile } from "./dom.js";

let onChanged = null;
let shownFor = ""; // the letters for which the groups were read

/** `changed` is called after dead letters have been requeued or deleted. */
export function startDeadLetters(changed) {
  onChanged = changed;
  byId("requeue-all").addEventListener("click", (event) => change("requeue", { ids: null }, event.target));
}

/** Read the groups again if there are other letters than before. */
export async function refreshGroups(depth, letters) {
  byId("export-dead").hidden = byId("requeue-all").hidden = !letters.length;
  byId("export-dead").href = addressOf("/admin/events/export");
  const now = JSON.stringify([depth.dead, letters[0]?.id, letters.at(-1)?.id]);
  if (now === shownFor) return;
  const { groups, complete, unreadable } = letters.length ? await ask("/admin/events/groups") : { groups: [], complete: true };
  shownFor = now;
  byId("groups-hint").textContent = complete || unreadable ? "" : "There are more dead letters than can be grouped: these are the oldest.";
  reconcile(byId("dead-groups"), groups, (group) => JSON.stringify(group), groupItem);
}

const groupItem = (group) => {
  const { event, reason } = group;
  const since = group.first_at === group.last_at ? moment(group.last_at) : `${moment(group.first_at)} to ${moment(group.last_at)}`;
  return h(
    "li",
    {},
    h(
      "div",
      { class: "group" },
      h("b", {}, event || "without a name"),
      h("span", {}, plural(group.events, "event")),
      h("span", { class: "reason" }, reason),
      h("span", { class: "time" }, since),
      responseLine(group.response),
    ),
    h(
      "div",
      { class: "letter-actions" },
      h("button", { type: "button", onclick: (click) => change("requeue", { event, reason }, click.target) }, "Requeue group"),
      deleteButton("Delete group", { event, reason }, plural(group.events, "event")),
    ),
  );
};

export const responseLine = (response) => (response ? h("span", { class: "response" }, `VWO: ${response}`) : null);

/** The actions of one letter. `complete` returns its whole body. */
export const letterActions = (letter, complete) =>
  h(
    "div",
    { class: "letter-actions" },
    h("button", { type: "button", onclick: (event) => change("requeue", { ids: [letter.id] }, event.target) }, "Requeue"),
    letter.count === 1 ? h("button", { type: "button", onclick: (event) => edit(letter, complete, event.target) }, "Edit") : null,
    deleteButton("Delete", { ids: [letter.id] }, plural(letter.count, "event")),
  );

/** A button that has to be clicked a second time. */
function deleteButton(title, body, what) {
  const reset = (event) => {
    delete event.target.dataset.sure;
    event.target.textContent = title;
  };
  const click = (event) => {
    if (event.target.dataset.sure) {
      change("discard", body, event.target);
      return;
    }
    event.target.dataset.sure = "true";
    event.target.textContent = `Really delete ${what}?`;
  };
  return h("button", { type: "button", onclick: click, onblur: reset }, title);
}

/** An editor below the letter. Masked keys are replaced by the real ones when the event is saved. */
async function edit(letter, complete, button) {
  const item = button.closest("li");
  if (item.querySelector(".editor")) return;
  try {
    const text = pretty(JSON.parse(await complete()));
    const area = h("textarea", { rows: "14", spellcheck: "false", "aria-label": "Event", value: text });
    const problem = h("p", { class: "problem", role: "alert" });
    const save = h("button", { type: "button", class: "primary", onclick: () => saveEdited(letter, area, problem, save) }, "Save and requeue");
    const cancel = h("button", { type: "button", onclick: () => editor.remove() }, "Cancel");
    const editor = h("div", { class: "editor" }, area, problem, h("div", { class: "letter-actions" }, save, cancel));
    item.append(editor);
    area.focus();
  } catch (error) {
    byId("events-problem").textContent = `This event cannot be edited: ${error.message}`;
  }
}

async function saveEdited(letter, area, problem, button) {
  problem.textContent = "";
  try {
    JSON.parse(area.value);
  } catch (error) {
    problem.textContent = `Expected a JSON object: ${error.message}`;
    area.focus();
    return;
  }
  await change("edit", { id: letter.id, event: JSON.parse(area.value) }, button, problem);
}

const DONE = { requeued: "requeued", discarded: "deleted" };

async function change(action, body, button, problem = byId("events-problem")) {
  button.disabled = true;
  problem.textContent = "";
  try {
    const [[done, events]] = Object.entries(await post(`/admin/events/${action}`, body));
    byId("events-done").textContent = `${plural(events, "event")} ${DONE[done]} at ${clock(Date.now() / 1000)}.`;
    shownFor = "";
    await onChanged();
    byId("tab-events").focus();
  } catch (error) {
    problem.textContent = error.message;
  }
  button.disabled = false;
}
