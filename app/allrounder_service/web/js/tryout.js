// Sends an example of one endpoint and shows what comes back.

import { base64, fetchModel, storeKey, storedKey } from "./api.js";
import { h, show } from "./dom.js";
import { milliseconds } from "./format.js";
import { example, resolve } from "./schema.js";

const EXAMPLE_PICTURE = "/web/examples/scene-41.webp";
const QUESTION = "Is the yellow triangle on the left of the green shape?";
const LONGEST = 20_000;

const bodies = {
  "/v1/chat": (image) => ({ image, question: QUESTION, budget: 0.5 }),
  "/v1/plan": (image) => ({ image, question: QUESTION, budget: 0.25, explain: true }),
  "/v1/chat/completions": (image, model) => ({
    model,
    messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: image } }, { type: "text", text: QUESTION }] }],
    budget: 0.5,
  }),
};

/** A closed <details>; what it needs is fetched when it is opened. */
export function tryout(verb, path, operation, document_) {
  const content = operation.requestBody && resolve(operation.requestBody, document_).content;
  const isForm = content && !content["application/json"];
  const box = h("details", {}, h("summary", {}, h("span", {}, isForm ? "Example" : "Try it"), h("span", { class: "value" }, isForm ? "curl" : "send it from here")));
  box.addEventListener("toggle", async () => {
    if (!box.open || box.querySelector(".try")) return;
    box.append(isForm ? formExample(path, content, document_) : await sender(verb, path, operation, content, document_));
  });
  return box;
}

function formExample(path, content, document_) {
  const schema = resolve(Object.values(content)[0].schema, document_);
  const parts = Object.entries(schema.properties ?? {})
    .filter(([name]) => schema.required?.includes(name))
    .map(([name, each]) => (resolve(each, document_).format === "binary" ? ` -F ${name}=@FILE` : ` -F ${name}=${example(each, document_)}`));
  return h("div", { class: "try" }, h("pre", { tabindex: 0, "aria-label": "Command" }, `curl -s ${location.origin}${path}${parts.join("")}`));
}

async function sender(verb, path, operation, content, document_) {
  const inputs = (operation.parameters ?? []).map((each) => resolve(each, document_)).map((each) =>
    ({ ...each, input: h("input", { id: `${verb}${path}-${each.name}`, placeholder: each.name, required: each.required }) }));
  const id = `${verb}${path}-body`;
  let offered = content && await bodyText(path, content, document_);
  const body = content && h("textarea", { id, spellcheck: "false", rows: 8 }, offered);
  const answer = h("div", { role: "status" });
  const send = h("button", { type: "submit", class: "primary" }, "Send");
  const form = h("form", { class: "try" },
    inputs.map(({ name, input }) => [h("label", { for: input.id }, name), input]),
    body && [h("label", { for: id }, "Body"), body], h("div", { class: "row" }, send), answer);
  const submit = async () => {
    send.disabled = true;
    await exchange({ verb, url: address(path, inputs), headers: headersOf(inputs), body: body?.value }, answer, withKey);
    send.disabled = false;
  };
  const withKey = async () => {
    // Without a key the server did not say which model it serves.
    if (body && body.value === offered) body.value = offered = await bodyText(path, content, document_);
    submit();
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  return form;
}

async function bodyText(path, content, document_) {
  const make = bodies[path];
  const value = make ? make(await dataUrl(), await modelId()) : example(content["application/json"].schema, document_);
  return JSON.stringify(value, null, 2);
}

const modelId = () => fetchModel().then(({ id }) => id, () => "demo");

async function dataUrl() {
  const blob = await (await fetch(EXAMPLE_PICTURE)).blob();
  return `data:image/webp;base64,${await base64(blob)}`;
}

function address(path, inputs) {
  const query = new URLSearchParams();
  let filled = path;
  for (const { name, in: place, input } of inputs) {
    if (place === "path") filled = filled.replace(`{${name}}`, encodeURIComponent(input.value));
    else if (place === "query" && input.value) query.set(name, input.value);
  }
  return query.size ? `${filled}?${query}` : filled;
}

const headersOf = (inputs) => Object.fromEntries(inputs
  .filter(({ in: place, input }) => place === "header" && input.value)
  .map(({ name, input }) => [name, input.value]));

async function exchange({ verb, url, headers: given, body }, answer, again) {
  const key = storedKey();
  const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}), ...given };
  const started = performance.now();
  try {
    const response = await fetch(url, { method: verb.toUpperCase(), headers, body });
    const text = await response.text();
    const took = milliseconds(performance.now() - started);
    show(answer, h("p", { class: response.ok ? "tag good" : "tag bad" }, `${response.status} ${response.statusText}, ${took}`),
      h("pre", { tabindex: 0, "aria-label": "Answer" }, pretty(text)), response.status === 401 && keyForm(again));
  } catch {
    show(answer, h("p", { class: "tag bad" }, "The server cannot be reached."));
  }
}

function keyForm(again) {
  const input = h("input", { type: "password", "aria-label": "API key", placeholder: "API key", autocomplete: "off" });
  const use = () => { storeKey(input.value.trim()); again(); };
  return h("div", { class: "row" }, input, h("button", { type: "button", onclick: use }, "Use this key"));
}

function pretty(text) {
  let shown = text;
  try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: as it came */ }
  return shown.length > LONGEST ? `${shown.slice(0, LONGEST)}\n…` : shown;
}
