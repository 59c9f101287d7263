// Helpers of console and docs. Text is always set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "rect", "g", "text"]);

/** h("a", {href, class, onclick, vars: {"--x": 1}}, child, ...): an element. Children may be nested lists, or null. */
export function h(tag, properties = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) set(element, name, value);
  append(element, children);
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (name === "vars") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
  else if (name === "value") element.value = value;
  else element.setAttribute(name, value === true ? "" : value);
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

export const byId = (id) => document.getElementById(id);

export function replace(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
}

/** Make the children of `parent` those of `items`; existing children are kept if their key is the same. */
export function reconcile(parent, items, keyOf, build) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const key = String(keyOf(item));
    const child = known.get(key) ?? build(item);
    child.dataset.key = key;
    return child;
  });
  const keep = new Set(wanted);
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  wanted.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

export class RequestFailed extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let environment = "";

/** Ask about this environment from now on; about the default one if the name is empty. */
export function useEnvironment(name) {
  environment = name;
}

/** The address of an admin path, about the chosen environment. */
export function addressOf(path) {
  if (!environment || !path.startsWith("/admin/")) return path;
  return `${path}${path.includes("?") ? "&" : "?"}environment=${encodeURIComponent(environment)}`;
}

async function respond(path, options) {
  let response;
  try {
    response = await fetch(addressOf(path), { credentials: "same-origin", ...options });
  } catch (error) {
    throw new RequestFailed(0, error.name === "AbortError" ? "cancelled" : "the gateway does not respond");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new RequestFailed(response.status, body.error ?? `status ${response.status}`);
}

/** Return the JSON of a response. Throws RequestFailed with the error of the gateway. */
export async function ask(path, options = {}) {
  const response = await respond(path, options);
  return response.json().catch(() => ({}));
}

/** Post, and call `each` with the JSON of each line of the response as it arrives. Throws RequestFailed. */
export async function follow(path, body, signal, each) {
  const response = await respond(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines) each(JSON.parse(line));
    }
  } catch (error) {
    throw new RequestFailed(0, error.name === "AbortError" ? "cancelled" : "the response of the gateway is incomplete");
  }
}

export const post = (path, body, method = "POST") =>
  ask(path, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// --- words

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

export function count(value) {
  if (value === null || value === undefined) return "–";
  return value < 1e6 ? whole.format(value) : short.format(value);
}

export function rate(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e5) return short.format(value);
  return value < 10 && value % 1 ? fine.format(value) : whole.format(value);
}

/** A count of the queue: "30", or "unknown, last known 30 (40 s ago)" while the store cannot be read. */
export function queued(queue, name) {
  if (!queue.last_known) return count(queue[name]);
  const last = queue.last_known[name];
  if (last === null) return "unknown, never read";
  return `unknown, last known ${count(last)} (${ago(queue.last_known.at, Date.now() / 1000)})`;
}

const UNITS = [
  ["d", 86400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

/** 93 -> "1 min 33 s": the two largest units. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const parts = [];
  let rest = Math.max(0, Math.floor(seconds));
  for (const [unit, size] of UNITS) {
    const amount = Math.floor(rest / size);
    rest -= amount * size;
    if (amount || (unit === "s" && !parts.length)) parts.push(`${amount} ${unit}`);
    else if (parts.length) break;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

export const ago = (at, now) => (at ? `${duration(now - at)} ago` : "not yet");

export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

export const moment = (at) => new Date(at * 1000).toLocaleString("sv-SE");

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;

export const json = (value) => (typeof value === "string" ? `"${value}"` : JSON.stringify(value));

/** The children of a text, in which backticks enclose code. */
export const withCode = (text) => text.split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));

/** JSON in several lines. */
export const pretty = (value) => JSON.stringify(value, null, 2);
