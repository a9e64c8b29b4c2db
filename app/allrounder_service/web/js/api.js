// The public API over fetch. Everything that can go wrong becomes a Problem in words.

const KEY = "allrounder-key";

export const storedKey = () => sessionStorage.getItem(KEY);
export const storeKey = (key) => sessionStorage.setItem(KEY, key);

export class Problem extends Error {
  constructor({ message, param = null, code = "unknown", status = 0, retryAfter = null }) {
    super(message);
    Object.assign(this, { param, code, status, retryAfter });
  }
}

const unreachable = () => new Problem({
  code: "network",
  message: "The server cannot be reached. It may have stopped, or the connection is down.",
});

const cutOff = () => new Problem({
  code: "network",
  message: "The connection broke before the answer was complete.",
});

const fromEnvelope = (error, response) => new Problem({
  ...error,
  status: response.status,
  retryAfter: Number(response.headers.get("retry-after")) || null,
});

async function asProblem(response) {
  const body = await response.json().catch(() => null);
  if (body?.error?.message) return fromEnvelope(body.error, response);
  return new Problem({ status: response.status, message: `The server answered with status ${response.status}.` });
}

async function call(path, options = {}) {
  const key = storedKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) throw await asProblem(response);
  return response;
}

const encoded = new WeakMap();

/** The server goes by the content of an image, whatever its type is said to be. */
function dataUrl(blob) {
  if (!encoded.has(blob)) encoded.set(blob, base64(blob).then((text) => `data:image/png;base64,${text}`));
  return encoded.get(blob);
}

export function base64(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => fail(new Problem({ param: "image", message: "The picture can no longer be read." }));
    reader.readAsDataURL(blob);
  });
}

// Not a form: browsers turn every newline in a form's text into two characters.
async function post(path, { image, question, budget }, more, signal) {
  const body = JSON.stringify({ question, budget, explain: true, ...more, image: await dataUrl(image) });
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
}

export async function fetchModel() {
  return (await (await call("/v1/models")).json()).data[0];
}

export async function fetchPlan(request, signal) {
  return (await post("/v1/plan", request, {}, signal)).json();
}

/** The whole answer; `onText` gets the text so far whenever some arrives. */
export async function ask(request, { signal, onText = () => {} }) {
  const response = await post("/v1/chat", request, { stream: true }, signal);
  let answer = "";
  let last = null;
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const event = JSON.parse(data);
    if (event.error) throw fromEnvelope(event.error, response);
    if (event.delta !== undefined) onText(answer += event.delta);
    else last = event;
  }
  if (!last) throw cutOff();
  return { ...last, answer };
}

async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : cutOff();
    });
    if (done) return;
    buffer += decoder.decode(value, { stream: true });
    const parts = buffer.split("\n\n");
    buffer = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}
