// An explanation as a link, and as the same decision by curl, the command, or an SDK.

import { ask, byId, h } from "./dom.js";

const FIELDS = ["featureKey", "id", "version", "ipAddress", "userAgent", "bucketingSeed"];
const JSON_FIELDS = ["customVariables", "variationTargetingVariables", "platformVariables"];
const SDK_FIELDS = ["id", "customVariables", "userAgent", "ipAddress", "variationTargetingVariables", "platformVariables", "bucketingSeed"];

// --- The address. It has fields of the form only, never a token.

/** The part of the address after #, for these fields. */
export function linkOf(fields) {
  const parameters = new URLSearchParams();
  for (const name of FIELDS) if (fields[name]) parameters.set(name, fields[name]);
  for (const name of JSON_FIELDS) if (fields[name]) parameters.set(name, JSON.stringify(fields[name]));
  if (!byId("environment-choice").hidden) parameters.set("environment", byId("environment").value);
  return `#explain&${parameters}`;
}

/** The fields of an address as texts; null if it has none. */
export function fieldsOf(hash) {
  if (!hash.startsWith("#explain&")) return null;
  const parameters = new URLSearchParams(hash.slice("#explain&".length));
  const names = [...FIELDS, ...JSON_FIELDS, "environment"].filter((name) => parameters.has(name));
  return Object.fromEntries(names.map((name) => [name, parameters.get(name)]));
}

// --- Literals of the languages

const quoted = (text) => JSON.stringify(text);
const single = (text) => `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Return a writer of JSON values in the syntax of a language. */
function writer({ text, none, yes = "true", no = "false", list, map }) {
  const write = (value) => {
    if (typeof value === "string") return text(value);
    if (value === null) return none;
    if (typeof value === "boolean") return value ? yes : no;
    if (Array.isArray(value)) return list(value.map(write));
    if (typeof value === "object") return map(Object.entries(value).map(([key, item]) => [text(key), write(item)]));
    return String(value);
  };
  return write;
}

const pairs = (entries, between) => entries.map((entry) => entry.join(between)).join(", ");

const node = writer({
  text: quoted,
  none: "null",
  list: (items) => `[${items.join(", ")}]`,
  map: (entries) => `{ ${pairs(entries, ": ")} }`,
});
const python = writer({
  text: quoted,
  none: "None",
  yes: "True",
  no: "False",
  list: (items) => `[${items.join(", ")}]`,
  map: (entries) => `{${pairs(entries, ": ")}}`,
});
const go = writer({
  text: quoted,
  none: "nil",
  list: (items) => `[]interface{}{${items.join(", ")}}`,
  map: (entries) => `map[string]interface{}{${pairs(entries, ": ")}}`,
});
const php = writer({
  text: single,
  none: "null",
  list: (items) => `[${items.join(", ")}]`,
  map: (entries) => `[${pairs(entries, " => ")}]`,
});
const java = writer({
  text: quoted,
  none: "null",
  list: (items) => `Arrays.asList(${items.join(", ")})`,
  map: (entries) => `new HashMap<String, Object>() {{ ${entries.map((entry) => `put(${entry.join(", ")});`).join(" ")} }}`,
});

const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const setter = (name) => `set${name[0].toUpperCase()}${name.slice(1)}`;

// --- Texts. `url` and `account` are those of this gateway.

const FORMS = {
  curl: ({ url, fields, needsKey }) => {
    const { id, version, ...others } = fields;
    const body = { ...others, userId: id, ...(needsKey ? { sdkKey: "..." } : {}) };
    return `curl ${shell(`${url}/server-side/getFlag`)} \\\n  -d ${shell(JSON.stringify(body))}`;
  },
  command: ({ fields }) => {
    const options = { feature: fields.featureKey, user: fields.id, "user-agent": fields.userAgent, ip: fields.ipAddress };
    const variables = { variables: fields.customVariables, targeting: fields.variationTargetingVariables };
    for (const [name, value] of Object.entries(variables)) if (value) options[name] = JSON.stringify(value);
    const given = Object.entries(options).filter(([, value]) => value);
    const flags = given.map(([name, value]) => `--${name} ${shell(value)}`).join(" ");
    return `tornado-gateway evaluate --settings settings.json ${flags} --explain`;
  },
  Node: ({ url, account, fields, context }) => `const { init } = require('vwo-fme-node-sdk');

(async () => {
  const client = await init({
    accountId: '${account}',
    sdkKey: '...',
    gatewayService: { url: ${node(url)} },
  });
  const flag = await client.getFlag(${node(fields.featureKey)}, ${node(context)});
  console.log(flag.isEnabled(), flag.getVariables());
})();`,
  Python: ({ url, account, fields, context }) => `from vwo import init

client = init({"account_id": "${account}", "sdk_key": "...", "gateway_service": {"url": ${python(url)}}})
context = ${python(Object.fromEntries(Object.entries(context).map(([name, value]) => [snake(name), value])))}
flag = client.get_flag(${python(fields.featureKey)}, context)
print(flag.is_enabled(), flag.get_variables())`,
  Go: ({ url, account, fields, context }) => `instance, err := vwo.Init(map[string]interface{}{
    "accountId":      ${account},
    "sdkKey":         "...",
    "gatewayService": ${go({ url })},
})
flag, err := instance.GetFlag(${go(fields.featureKey)}, ${go(context)})`,
  PHP: ({ url, account, fields, context }) => `$client = VWO::init([
    'accountId' => ${account},
    'sdkKey' => '...',
    'gatewayService' => ${php(url.startsWith("http:") ? { url, isUrlNotSecure: true } : { url })},
]);
$flag = $client->getFlag(${php(fields.featureKey)}, ${php(context)});`,
  Java: ({ url, account, fields, context }) => `VWOInitOptions options = new VWOInitOptions();
options.setAccountId(${account});
options.setSdkKey("...");
options.setGatewayService(${java({ url })});
VWO client = VWO.init(options);

VWOUserContext context = new VWOUserContext();
${Object.entries(context)
  .map(([name, value]) => `context.${setter(name)}(${java(value)});`)
  .join("\n")}
GetFlag flag = client.getFlag(${java(fields.featureKey)}, context);`,
};

const NOTES = {
  curl: "It decides and sends events, as every getFlag.",
  command: "settings.json is a settings document, such as that of /server-side/v2-settings.",
};

/** The text of a form; a link needs no feature, the others do. */
async function textOf(form, fields) {
  if (form === "link") return `${location.origin}/console${linkOf(fields)}`;
  const { account } = await ask("/admin/overview");
  const given = SDK_FIELDS.filter((name) => fields[name] !== undefined);
  const context = Object.fromEntries(given.map((name) => [name, fields[name]]));
  const needsKey = !byId("environment-choice").hidden;
  return FORMS[form]({ url: location.origin, account: account.id, fields, context, needsKey });
}

/** Buttons that copy the explained decision. The text is shown too, because browsers let only pages with TLS copy. */
export function copyBar(fields) {
  const text = h("pre", { hidden: true, tabindex: "0", class: "copied-text", "aria-label": "Copied text" });
  const status = h("span", { class: "hint", role: "status" });
  const copy = async (form) => {
    try {
      text.textContent = await textOf(form, fields);
      text.hidden = false;
      const isCopied = await copied(text.textContent);
      status.textContent = [isCopied ? "Copied." : "Select the text to copy it.", NOTES[form] ?? ""].join(" ");
    } catch (error) {
      status.textContent = error.message;
    }
  };
  const forms = ["link", ...(fields.featureKey ? Object.keys(FORMS) : [])];
  const button = (form) => h("button", { type: "button", onclick: () => copy(form) }, form[0].toUpperCase() + form.slice(1));
  return [h("div", { class: "copy-bar", role: "group", "aria-label": "Copy as" }, h("span", { class: "hint" }, "Copy as"), forms.map(button)), status, text];
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
