// JSON schemas as rows of a table, and as a first example.

const MAX_DEPTH = 5;

export function resolve(schema, document_) {
  let found = schema ?? {};
  while (found.$ref) found = found.$ref.split("/").slice(1).reduce((node, key) => node[key], document_);
  return found;
}

/** [{path, type, required, note}] of an object schema and of what lies in it. */
export function rows(schema, document_, path = "", depth = 0) {
  const found = resolve(schema, document_);
  if (depth > MAX_DEPTH) return [];
  const own = Object.entries(found.properties ?? {}).flatMap(([name, child]) => {
    const at = path ? `${path}.${name}` : name;
    const resolved = resolve(child, document_);
    const row = { path: at, type: typeOf(resolved, document_), required: found.required?.includes(name) ?? false, note: note(resolved) };
    return [row, ...inside(resolved, document_, at, depth + 1)];
  });
  return own;
}

function inside(schema, document_, path, depth) {
  if (schema.properties) return rows(schema, document_, path, depth);
  if (schema.items) return inside(resolve(schema.items, document_), document_, `${path}[]`, depth);
  const forms = (schema.anyOf ?? schema.oneOf ?? []).map((each) => inside(resolve(each, document_), document_, path, depth));
  return forms.length > 1 ? merged(forms.flat()) : forms.flat();
}

/** Forms share fields, and what one form requires another may lack. */
function merged(list) {
  const first = new Map(list.toReversed().map((row) => [row.path, { ...row, required: false }]));
  return [...first.values()].toReversed();
}

function typeOf(schema, document_) {
  const found = resolve(schema, document_);
  const options = found.anyOf ?? found.oneOf;
  if (options) return [...new Set(options.map((each) => typeOf(each, document_)))].join(" or ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.enum) return found.enum.map((each) => JSON.stringify(each)).join(" or ");
  if (found.format === "binary") return "file";
  if (found.type === "array") return `list of ${typeOf(found.items, document_)}`;
  return found.type ?? "any";
}

// Bounds that only keep numbers within a machine word say nothing to a reader.
const HUGE = 2 ** 31 - 1;

const LIMITS = [
  ["exclusiveMinimum", (value) => `more than ${value}`],
  ["minimum", (value) => `at least ${value}`],
  ["maximum", (value) => `at most ${value}`],
  ["minLength", (value) => (value === 1 ? "not empty" : `${value} characters or more`)],
  ["maxLength", (value) => `at most ${value} characters`],
  ["minItems", (value) => (value === 1 ? "not empty" : `${value} items or more`)],
  ["maxItems", (value) => `at most ${value} items`],
];

function limits(schema) {
  return LIMITS.filter(([key]) => Math.abs(schema[key] ?? HUGE) < HUGE).map(([key, say]) => say(schema[key]));
}

function note(schema) {
  const real = (schema.anyOf ?? []).filter((each) => each.type !== "null");
  const parts = [...limits(schema), ...(real.length === 1 ? limits(real[0]) : [])];
  const standard = schema.default !== undefined && schema.default !== null ? [`default ${JSON.stringify(schema.default)}`] : [];
  return [schema.description, [...parts, ...standard].join(", ")].filter(Boolean).join(" ");
}

/** The smallest value that a schema lets through; only what is required is filled in. */
export function example(schema, document_) {
  const found = resolve(schema, document_);
  if (found.default !== undefined) return found.default;
  if (found.const !== undefined) return found.const;
  if (found.enum) return found.enum[0];
  if (found.anyOf ?? found.oneOf) return example((found.anyOf ?? found.oneOf)[0], document_);
  if (found.type === "array") return (found.minItems ?? 0) > 0 ? [example(found.items, document_)] : [];
  if (found.type === "object" || found.properties) {
    return Object.fromEntries((found.required ?? []).map((name) => [name, example(found.properties[name], document_)]));
  }
  return { string: "text", integer: 1, number: 1, boolean: false }[found.type] ?? null;
}
