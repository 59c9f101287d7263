// docs/operating.md as a page, so that problems and alerts can link to their remedy. It draws the parts of Markdown that
// this document uses: headings, paragraphs, lists, tables, code, links and anchors. Text is always set as text.

import { byId, h, replace } from "./dom.js";

const ANCHOR = /<a id="([^"]+)"><\/a>/;
const INLINE = /<a id="([^"]+)"><\/a>|`([^`]+)`|\*\*([^*]+)\*\*|\[([^\]]+)\]\(([^)]+)\)/g;

const slug = (title) => title.toLowerCase().replace(/[^\w\- ]/g, "").replaceAll(" ", "-");

/** The children of a line: texts, code, bold texts, links within the page, and anchors. */
function inline(text) {
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, id, code, bold, label, target] = found;
    parts.push(text.slice(at, found.index));
    if (id) parts.push(h("span", { id }));
    else if (code) parts.push(h("code", {}, code));
    else if (bold) parts.push(h("b", {}, inline(bold)));
    else parts.push(target.startsWith("#") ? h("a", { href: target }, inline(label)) : h("span", {}, inline(label)));
    at = found.index + whole.length;
  }
  return [...parts, text.slice(at)];
}

const cells = (line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines) {
  const [head, , ...rows] = lines.map(cells);
  const titles = head.map((title) => title || "–");
  return h(
    "div",
    { class: "scroll", role: "region", tabindex: "0", "aria-label": `Table: ${titles.join(", ")}` },
    h(
      "table",
      { class: "stack" },
      h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, inline(title))))),
      h("tbody", {}, rows.map((row) => h("tr", { id: idOf(row[0]) }, row.map((cell) => h("td", {}, inline(cell.replace(ANCHOR, ""))))))),
    ),
  );
}

/** The anchor in a cell, for its whole row. */
const idOf = (cell) => ANCHOR.exec(cell)?.[1] ?? null;

const list = (lines) => h("ul", { class: "runbook-list" }, lines.join("\n").split(/^- /m).slice(1).map((item) => h("li", {}, inline(item.replaceAll("\n", " ")))));

const code = (lines) => h("pre", { tabindex: "0" }, lines.slice(1, -1).join("\n"));

function heading([line]) {
  const [, marks, title] = /^(#+) (.*)$/.exec(line);
  return h(`h${Math.min(marks.length + 1, 6)}`, { id: slug(title) }, inline(title));
}

const KINDS = [
  [/^```/, code],
  [/^#+ /, heading],
  [/^\|/, table],
  [/^- /, list],
  [/./, (lines) => h("p", {}, inline(lines.join(" ")))],
];

/** The blocks of a document: lists of lines, separated by empty lines; code may contain them. */
function blocks(text) {
  const found = [[]];
  let isCode = false;
  for (const line of text.split("\n")) {
    const isFence = line.startsWith("```");
    if ((isFence && !isCode) || (!line && !isCode)) found.push([]);
    if (line || isCode) found.at(-1).push(line);
    if (isFence && isCode) found.push([]);
    if (isFence) isCode = !isCode;
  }
  return found.filter((lines) => lines.length);
}

const draw = (lines) => KINDS.find(([pattern]) => pattern.test(lines[0]))[1](lines);

function showTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (const marked of document.querySelectorAll(".target")) marked.classList.remove("target");
  const shown = target?.tagName === "SPAN" ? target.closest("p").nextElementSibling : target; // the heading below an anchor
  shown?.classList.add("target");
  shown?.scrollIntoView();
}

const response = await fetch("/web/operating.md");
const drawn = blocks(await response.text()).map(draw);
replace(byId("runbook"), drawn);
replace(byId("contents"), h("ul", {}, drawn.filter((each) => each.tagName === "H3").map((title) => h("li", {}, h("a", { href: `#${title.id}` }, title.textContent)))));
addEventListener("hashchange", showTarget);
showTarget();
