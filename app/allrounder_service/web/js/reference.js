// The API reference: every endpoint of /openapi.json with its fields, answers and an example.

import { storedKey } from "./api.js";
import { find, h, show } from "./dom.js";
import { resolve, rows } from "./schema.js";
import { tryout } from "./tryout.js";

const VERBS = ["get", "post", "put", "patch", "delete"];

async function start() {
  const key = storedKey();
  const response = await fetch("/openapi.json", { headers: key ? { Authorization: `Bearer ${key}` } : {} }).catch(() => null);
  if (!response?.ok) {
    const asksForKey = response?.status === 401 || response?.status === 403;
    show(find("endpoints"), h("p", { role: "alert" }, asksForKey
      ? ["This server describes itself only to API keys with the scope docs. ", h("a", { href: "/" }, "Give one in the playground"), ", then come back in the same tab."]
      : "The description could not be loaded. Reload the page once the server runs."));
    return;
  }
  const description = await response.json();
  const operations = Object.entries(description.paths).flatMap(([path, item]) =>
    VERBS.filter((verb) => item[verb]).map((verb) => ({ verb, path, operation: item[verb], id: `${verb}-${path.replaceAll(/\W+/g, "-")}` })));
  operations.sort((one, other) => rank(one) - rank(other));
  show(find("contents"), operations.map(({ verb, path, id }) => h("a", { href: `#${id}` }, badge(verb), path)), h("a", { href: "#errors" }, "Errors"));
  show(find("endpoints"), operations.map((each) => endpoint(each, description)), errors(operations, description));
  find("endpoints").setAttribute("aria-busy", "false");
  find("server").querySelector("span").textContent = `${description.info.title} ${description.info.version}`;
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

const rank = ({ path }) => (path.startsWith("/v1/chat") ? 0 : path.startsWith("/v1/") ? 1 : 2);

const badge = (verb) => h("span", { class: `verb ${verb}` }, verb.toUpperCase());

function endpoint({ verb, path, operation, id }, description) {
  const content = operation.requestBody && resolve(operation.requestBody, description).content;
  const parameters = (operation.parameters ?? []).map((each) => resolve(each, description));
  return h("section", { class: "card endpoint", id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, badge(verb), path),
    h("p", {}, operation.description ?? operation.summary ?? ""),
    parameters.length > 0 && [h("h3", {}, "Parameters"), fields(parameters.map(parameterRow), "Parameters")],
    content && request(content, description),
    answers(operation.responses, description),
    tryout(verb, path, operation, description));
}

const parameterRow = ({ name, required, schema, description: note, in: place }) =>
  ({ path: name, required, type: schema?.type ?? "string", note: [note, `in the ${place}`].filter(Boolean).join(", ") });

function request(content, description) {
  const [first] = Object.values(content);
  return [
    h("h3", {}, "Body"),
    h("p", { class: "hint" }, Object.keys(content).join(" or "), Object.keys(content).length > 1 && ", with the same fields"),
    fields(rows(first.schema, description), "Fields of the body"),
  ];
}

function fields(list, name) {
  if (list.length === 0) return h("p", { class: "hint" }, "No fields.");
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, h("table", {},
    h("thead", {}, h("tr", {}, ["Field", "Type", "Meaning"].map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, list.map(({ path, type, required, note }) => h("tr", {},
      h("td", {}, path, required && h("span", { class: "must" }, "required")), h("td", {}, type), h("td", {}, note))))));
}

function answers(responses, description) {
  const good = Object.entries(responses).filter(([status]) => status < "300");
  const bad = Object.entries(responses).filter(([status]) => status >= "300");
  return [
    good.map(([status, response]) => {
      const schema = response.content?.["application/json"]?.schema;
      const list = schema ? rows(schema, description) : [];
      return list.length > 0 && h("details", {},
        h("summary", {}, h("span", {}, `Answer ${status}`), h("span", { class: "value" }, `${list.length} fields`)),
        h("p", { class: "hint" }, response.description), fields(list, `Fields of the answer ${status}`));
    }),
    bad.length > 0 && h("details", {},
      h("summary", {}, h("span", {}, "Errors"), h("span", { class: "value" }, bad.map(([status]) => status).join(", "))),
      statuses(bad)),
  ];
}

const statuses = (list) => h("dl", { class: "statuses" }, list.flatMap(([status, { description: text }]) => [h("dt", {}, status), h("dd", {}, text)]));

function errors(operations, description) {
  const all = Object.assign({}, ...operations.map(({ operation }) => operation.responses));
  const known = Object.entries(all).filter(([status]) => status >= "300");
  const problem = description.components?.schemas?.Problem;
  return h("section", { class: "card endpoint", id: "errors", "aria-labelledby": "errors-title" },
    h("h2", { id: "errors-title" }, "Errors"),
    h("p", {}, "Every answer that is not a success has one body; 429 and 503 say in Retry-After when to come back."),
    problem && fields(rows(problem, description), "Fields of an error"),
    h("h3", {}, "Statuses"), statuses(known));
}

start();
