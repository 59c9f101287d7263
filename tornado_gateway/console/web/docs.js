// The API description, drawn from /openapi.json: operations with their parameters and responses, and a form to try each.

import { byId, h, replace } from "./dom.js";

const METHODS = ["get", "post", "put", "delete"];
const DEEPEST_SCHEMA = 6;

const source = await fetch("/openapi.json").then((response) => response.json());

const operations = Object.entries(source.paths).flatMap(([path, item]) =>
  METHODS.filter((method) => item[method]).map((method) => ({ path, method, ...item[method] })),
);

/** The component that a reference such as "#/components/schemas/Flag" names. */
const resolve = (part) => (part?.$ref ? resolve(part.$ref.split("/").slice(1).reduce((node, name) => node[name], source)) : (part ?? {}));

// --- schemas

function typeOf(schema) {
  const actual = resolve(schema);
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if ("const" in actual) return JSON.stringify(actual.const);
  if (actual.anyOf) return actual.anyOf.map(typeOf).join(" or ");
  if (actual.type === "array") return `list of ${typeOf(actual.items ?? {})}`;
  return [actual.type ?? "anything"].flat().join(" or ");
}

function schemaList(schema, depth = 0, above = []) {
  const actual = resolve(schema);
  if (actual.type === "array") return schemaList(actual.items ?? {}, depth, above);
  if (!actual.properties || depth > DEEPEST_SCHEMA || above.includes(actual)) return null;
  return h(
    "ul",
    { class: "schema" },
    Object.entries(actual.properties).map(([name, property]) =>
      h(
        "li",
        {},
        h("code", {}, name),
        " ",
        h("span", { class: "type" }, typeOf(property)),
        actual.required?.includes(name) ? h("span", { class: "must" }, " required") : null,
        property.description ? h("span", { class: "hint" }, ` · ${property.description}`) : null,
        schemaList(property, depth + 1, [...above, actual]),
      ),
    ),
  );
}

// --- operations

const pretty = (value) => JSON.stringify(value, null, 2);

const contentOf = (part) => Object.entries(part?.content ?? {})[0] ?? [null, {}];

function operationCard(operation) {
  const body = h("div", { class: "operation-body" });
  const details = h(
    "details",
    { class: `card operation${operation.deprecated ? " deprecated" : ""}`, id: operation.operationId },
    h(
      "summary",
      {},
      h("span", { class: `method ${operation.method}` }, operation.method.toUpperCase()),
      h("code", {}, operation.path),
      h("span", { class: "hint" }, operation.summary),
      operation.security ? h("span", { class: "pill" }, "token") : null,
    ),
    body,
  );
  details.addEventListener("toggle", () => {
    if (details.open && !body.firstChild) replace(body, operationBody(operation));
  });
  return details;
}

const operationBody = (operation) => [
  operation.description ? h("p", {}, operation.description) : null,
  operation.parameters ? h("div", {}, h("h3", {}, "Query"), parameterList(operation.parameters)) : null,
  operation.requestBody ? h("div", {}, h("h3", {}, "Body"), schemaList(contentOf(operation.requestBody)[1].schema)) : null,
  h(
    "div",
    {},
    h("h3", {}, "Responses"),
    h("ul", { class: "responses" }, Object.entries(operation.responses).map(([status, response]) => responseItem(status, resolve(response)))),
  ),
  trial(operation),
];

const parameterList = (parameters) =>
  h(
    "ul",
    { class: "schema" },
    parameters.map((parameter) =>
      h(
        "li",
        {},
        h("code", {}, parameter.name),
        parameter.required ? h("span", { class: "must" }, " required") : null,
        h("span", { class: "hint" }, ` · ${parameter.description}`),
      ),
    ),
  );

function responseItem(status, response) {
  const [, content] = contentOf(response);
  return h(
    "li",
    {},
    h("p", {}, h("span", { class: `pill ${status < 400 ? "good" : "bad"}` }, status), response.description),
    content.example === undefined ? null : h("pre", { tabindex: "0" }, pretty(content.example)),
    status < 400 && content.schema ? schemaList(content.schema) : null,
  );
}

// --- trying

function trial(operation) {
  const [, content] = contentOf(operation.requestBody);
  const id = (name) => `try-${operation.operationId}-${name}`;
  const inputs = (operation.parameters ?? []).map((parameter) => [
    parameter.name,
    h("input", { id: id(parameter.name), value: String((parameter.required && parameter.example) || ""), spellcheck: "false" }),
  ]);
  const area = operation.requestBody
    ? h("textarea", { id: id("body"), rows: 6, spellcheck: "false", value: pretty(content.example ?? {}), class: "wide" })
    : null;
  const result = h("div", { "aria-live": "polite" });
  const send = async (event) => {
    event.preventDefault();
    const query = new URLSearchParams(inputs.filter(([, input]) => input.value).map(([name, input]) => [name, input.value]));
    const address = operation.path + (query.size ? `?${query}` : "");
    replace(result, await responseTo(operation.method, address, area?.value));
  };
  return h(
    "form",
    { class: "try", onsubmit: send },
    h("h3", {}, "Send a request to this gateway"),
    h(
      "div",
      { class: "fields" },
      inputs.map(([name, input]) => [h("label", { for: input.id }, name), input]),
      area ? [h("label", { for: area.id, class: "wide" }, "Body"), area] : null,
    ),
    h("button", { type: "submit" }, "Send"),
    result,
  );
}

async function responseTo(method, address, body) {
  const before = performance.now();
  try {
    const headers = method === "get" ? {} : { "Content-Type": "application/json" };
    const response = await fetch(address, { method: method.toUpperCase(), headers, body });
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

// --- the page

function draw() {
  const wanted = byId("filter").value.toLowerCase();
  const found = operations.filter(({ path, summary, tags }) => `${path} ${summary} ${tags}`.toLowerCase().includes(wanted));
  const groups = source.tags
    .map((tag) => ({ ...tag, found: found.filter((operation) => operation.tags.includes(tag.name)) }))
    .filter((group) => group.found.length);
  replace(
    byId("contents"),
    groups.map((group) => [h("h2", {}, group["x-displayName"]), group.found.map(contentsLink)]),
  );
  replace(
    byId("operations"),
    groups.map((group) => [h("h2", {}, group["x-displayName"]), h("p", { class: "hint" }, group.description), group.found.map(operationCard)]),
  );
}

const contentsLink = (operation) =>
  h(
    "a",
    { href: `#${operation.operationId}` },
    h("span", { class: `method ${operation.method}` }, operation.method.toUpperCase()),
    operation.path,
  );

function openNamed() {
  const named = byId(location.hash.slice(1));
  if (named?.tagName === "DETAILS") {
    named.open = true;
    named.scrollIntoView();
  }
}

byId("version").textContent = `release ${source.info.version}`;
byId("filter").addEventListener("input", draw);
addEventListener("hashchange", openNamed);
draw();
openNamed();
