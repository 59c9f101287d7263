// The API description, drawn from /openapi.json: operations with their parameters and responses, and a form to try each.

import { byId, h, pretty, replace, withCode } from "./dom.js";
import { trial } from "./try.js";

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
        property.description ? h("span", { class: "hint" }, " · ", withCode(property.description)) : null,
        schemaList(property, depth + 1, [...above, actual]),
      ),
    ),
  );
}

// --- operations

const contentOf = (part) => Object.entries(part?.content ?? {})[0] ?? [null, {}];

const isUnstable = (operation) => operation["x-stability"] === "unstable";

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
      isUnstable(operation) ? h("span", { class: "pill" }, "unstable") : null,
    ),
    body,
  );
  details.addEventListener("toggle", () => {
    if (details.open && !body.firstChild) replace(body, operationBody(operation));
  });
  return details;
}

const operationBody = (operation) => [
  operation.description ? h("p", {}, withCode(operation.description)) : null,
  operation.parameters ? h("div", {}, h("h3", {}, "Parameters"), parameterList(operation.parameters)) : null,
  operation.requestBody ? h("div", {}, h("h3", {}, "Body"), schemaList(contentOf(operation.requestBody)[1].schema)) : null,
  h(
    "div",
    {},
    h("h3", {}, "Responses"),
    h("ul", { class: "responses" }, Object.entries(operation.responses).map(([status, response]) => responseItem(status, resolve(response)))),
  ),
  trial(operation, contentOf(operation.requestBody)[1].example),
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
        h("span", { class: "hint" }, " · ", withCode(parameter.description)),
      ),
    ),
  );

function responseItem(status, response) {
  const [, content] = contentOf(response);
  return h(
    "li",
    {},
    h("p", {}, h("span", { class: `pill ${status < 400 ? "good" : "bad"}` }, status), withCode(response.description)),
    content.example === undefined ? null : h("pre", { tabindex: "0" }, pretty(content.example)),
    status < 400 && content.schema ? schemaList(content.schema) : null,
  );
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
    groups.map((group) => [h("h2", {}, group["x-displayName"]), h("p", { class: "hint" }, withCode(group.description)), group.found.map(operationCard)]),
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
