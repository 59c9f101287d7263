// The form of an operation: sends a request to this gateway, or copies it as a curl command.

import { h, pretty, replace } from "./dom.js";

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const CREDENTIALS = { adminToken: "Authorization: Bearer $ADMIN_TOKEN", webhookToken: "X-Webhook-Token: $WEBHOOK_TOKEN" };

/** The form to try an operation. `example` is the body to begin with. */
export function trial(operation, example) {
  const id = (name) => `try-${operation.operationId}-${name}`;
  const inputs = (operation.parameters ?? []).map((parameter) => [
    parameter,
    h("input", { id: id(parameter.name), value: String((parameter.required && parameter.example) || ""), spellcheck: "false" }),
  ]);
  const area = operation.requestBody
    ? h("textarea", { id: id("body"), rows: 6, spellcheck: "false", value: pretty(example ?? {}), class: "wide" })
    : null;
  const result = h("div", { "aria-live": "polite" });
  const request = () => requestOf(operation, inputs, area?.value);
  const send = async (event) => {
    event.preventDefault();
    replace(result, await responseTo(request()));
  };
  const copy = async () => replace(result, await copied(curl(request(), operation.security)));
  return h(
    "form",
    { class: "try", onsubmit: send },
    h("h3", {}, "Send a request to this gateway"),
    operation["x-events"] ? h("p", { class: "note" }, `Sends real events to VWO: ${operation["x-events"]}. A gateway without an account discards them.`) : null,
    h(
      "div",
      { class: "fields" },
      inputs.map(([{ name }, input]) => [h("label", { for: input.id }, name), input]),
      area ? [h("label", { for: area.id, class: "wide" }, "Body"), area] : null,
    ),
    h("div", { class: "buttons" }, h("button", { type: "submit" }, "Send"), h("button", { type: "button", onclick: copy }, "Copy as curl")),
    result,
  );
}

/** The request of a filled form: parameters are in the path, the query or the headers. */
function requestOf({ method, path }, inputs, body) {
  const query = new URLSearchParams();
  const headers = method === "get" ? {} : { "Content-Type": "application/json" };
  for (const [{ name, in: place }, { value }] of inputs) {
    if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(value));
    else if (value && place === "header") headers[name] = value;
    else if (value) query.append(name, value);
  }
  return { method: method.toUpperCase(), address: path + (query.size ? `?${query}` : ""), headers, body };
}

/** The request as a command. The shell fills in the token, so that it is not in what is copied. */
function curl({ method, address, headers, body }, security = []) {
  const parts = [`curl ${method === "GET" ? "" : `-X ${method} `}${shell(location.origin + address)}`];
  const credential = security.flatMap(Object.keys).map((scheme) => CREDENTIALS[scheme])[0];
  if (credential) parts.push(`-H "${credential}"`);
  for (const [name, value] of Object.entries(headers)) parts.push(`-H ${shell(`${name}: ${value}`)}`);
  if (body !== undefined) parts.push(`-d ${shell(body)}`);
  return parts.join(" \\\n  ");
}

/** Copy a text, and show it too, because browsers let only pages with TLS copy. */
async function copied(text) {
  let hint = "Copied.";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    hint = "Select the text to copy it.";
  }
  return [
    h("p", { class: "hint" }, hint),
    h("pre", { tabindex: "0", class: "copied-text", "aria-label": "Copied text" }, text),
  ];
}

async function responseTo({ address, ...options }) {
  const before = performance.now();
  try {
    const response = await fetch(address, options);
    const text = await response.text();
    const took = Math.round(performance.now() - before);
    return [
      h("p", {}, h("span", { class: `pill ${response.ok ? "good" : "bad"}` }, response.status), ` ${took} ms`),
      text ? h("pre", { tabindex: "0" }, readable(text)) : h("p", { class: "hint" }, "The body is empty."),
    ];
  } catch (error) {
    return h("p", { class: "problem" }, error.message);
  }
}

function readable(text) {
  try {
    return pretty(JSON.parse(text));
  } catch {
    return text;
  }
}
