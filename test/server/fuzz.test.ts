/**
 * Requests made from the OpenAPI document that the server itself gives out, whole and with something wrong in them. What the document calls
 * invalid is refused with 400 and a name; what it calls valid is never refused for its form; nothing brings the server down.
 */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { fromJSONSchema } from "zod";
import { operations } from "../../src/server/operations.ts";
import { errorOf, removeFolder, serveTiny, writeTinyModel, type TestServer } from "./harness.ts";

type Schema = Readonly<Record<string, unknown>>;
/** The same requests each time, or many others. */
const draws = process.env["MOE_LONG"] === "1" ? { numRuns: 1500 } : { numRuns: 60, seed: 20 };

let folder = "";
let server: TestServer;
let schemas: Record<string, Schema> = {};
beforeAll(async () => {
  folder = await writeTinyModel();
  server = await serveTiny(folder, { maxQueue: 1000 });
  const document = (await (await fetch(`${server.url}/openapi.json`)).json()) as { components: { schemas: Record<string, Schema> } };
  schemas = document.components.schemas;
}, 60_000);
afterAll(async () => {
  expect(server.engine.death).toBeNull();
  // A fault of the server's own is a line of level error, whatever the client was told.
  expect(server.log.filter(({ level }) => level === "error")).toEqual([]);
  await server.close();
  removeFolder(folder);
}, 60_000);

const texts = fc.oneof(
  fc.constantFrom("", "a", "Hello there", "<|im_end|>", "\ud800", "\u0000", "日本", "tiny"),
  fc.string({ unit: "binary", maxLength: 12 }),
);
const patterns: Record<string, fc.Arbitrary<string>> = {
  "^[0-9]{1,9}$": fc.nat(1500).map(String),
  "^[a-zA-Z0-9_.-]{1,64}$": fc.constantFrom("f", "get_weather", "a.b-c"),
};

/** Values that are valid under a schema of the document. A keyword that is not known here fails the test. */
function valid(schema: Schema): fc.Arbitrary<unknown> {
  const { anyOf, type, ...rest } = schema;
  if (Array.isArray(anyOf)) return fc.oneof(...(anyOf as Schema[]).map(valid));
  if ("const" in rest) return fc.constant(rest["const"]);
  if (Array.isArray(rest["enum"])) return fc.constantFrom(...(rest["enum"] as unknown[]));
  if (Array.isArray(type)) return fc.oneof(...(type as string[]).map((one) => valid({ ...rest, type: one })));
  const number = (key: string, otherwise: number): number => (typeof rest[key] === "number" ? rest[key] : otherwise);
  switch (type) {
    case undefined:
      return fc.jsonValue({ maxDepth: 1 });
    case "null":
      return fc.constant(null);
    case "boolean":
      return fc.boolean();
    case "integer":
      return fc.oneof(
        fc.integer({ min: Math.max(-9, number("minimum", -9)), max: Math.min(9, number("maximum", 9)) }),
        fc.constantFrom(number("minimum", Number.MIN_SAFE_INTEGER), number("maximum", Number.MAX_SAFE_INTEGER)),
      );
    case "number": {
      const max = number("maximum", 1e6);
      const least = number("minimum", number("exclusiveMinimum", -1e6));
      return fc.double({ min: least, max, minExcluded: "exclusiveMinimum" in rest, noNaN: true });
    }
    case "string": {
      const pattern = rest["pattern"];
      const known = typeof pattern === "string" ? patterns[pattern] : texts;
      if (known === undefined) throw new Error(`a pattern that this test does not know: ${String(pattern)}`);
      return known;
    }
    case "array":
      return fc.array(valid((rest["items"] ?? {}) as Schema), {
        minLength: number("minItems", 0),
        maxLength: Math.max(3, number("minItems", 0)),
      });
    case "object":
      return validObject(rest);
    default:
      throw new Error(`a type that this test does not know: ${JSON.stringify(type)}`);
  }
}
function validObject(schema: Schema): fc.Arbitrary<unknown> {
  const { properties, required, additionalProperties, propertyNames } = schema;
  if (properties === undefined) {
    const keys =
      propertyNames === undefined ? fc.constantFrom("a", "type", "description") : (valid(propertyNames as Schema) as fc.Arbitrary<string>);
    return fc.dictionary(keys, valid((additionalProperties ?? {}) as Schema), { maxKeys: 3, noNullPrototype: true });
  }
  const fields = Object.fromEntries(Object.entries(properties as Record<string, Schema>).map(([key, field]) => [key, valid(field)]));
  // Few optional fields at once, or all requests would be refused for how they contradict each other.
  const requiredKeys = (required ?? []) as string[];
  const optional = Object.keys(fields).filter((key) => !requiredKeys.includes(key));
  return fc.subarray(optional, { maxLength: Math.min(3, optional.length) }).chain((keys) =>
    fc.record(Object.fromEntries([...requiredKeys, ...keys].map((key) => [key, fields[key] ?? fc.constant(null)])), {
      noNullPrototype: true,
    }),
  );
}

/** A field of a schema, however deep, and a body that has a value in it and else what is required. */
interface Field {
  readonly name: string;
  readonly schema: Schema;
  readonly body: (value: unknown) => unknown;
}
function fieldsOf(schema: Schema, prefix = ""): Field[] {
  const kinds = ((schema["anyOf"] as Schema[] | undefined) ?? [schema]).flatMap(({ type, ...rest }) =>
    (Array.isArray(type) ? (type as string[]) : [type]).map((one): Schema => ({ ...rest, type: one })),
  );
  return kinds.flatMap((kind) => {
    if (kind["anyOf"] !== undefined) return fieldsOf(kind, prefix);
    if (kind["type"] === "array") return nested({ name: `${prefix}[]`, schema: (kind["items"] ?? {}) as Schema, body: (item) => [item] });
    if (kind["type"] !== "object" || kind["properties"] === undefined) return [];
    const properties = kind["properties"] as Record<string, Schema>;
    const required = (kind["required"] ?? []) as string[];
    const base = Object.fromEntries(required.map((key) => [key, fc.sample(valid(properties[key] ?? {}), { numRuns: 1, seed: 3 })[0]]));
    return Object.entries(properties).flatMap(([key, own]) =>
      nested({ name: prefix === "" ? key : `${prefix}.${key}`, schema: own, body: (value) => ({ ...base, [key]: value }) }),
    );
  });
}
function nested(field: Field): Field[] {
  const inner = fieldsOf(field.schema, field.name).map(({ body, ...rest }) => ({
    ...rest,
    body: (value: unknown) => field.body(body(value)),
  }));
  return [field, ...inner];
}
/** Values of every type, and those just outside of what the field allows. */
function wrongValues(schema: Schema): unknown[] {
  const values: unknown[] = [null, true, -1, 0.5, 1e300, 2 ** 53, "", "x", "\ud800", [], [[1]], {}, { a: 1 }];
  for (const { minimum, exclusiveMinimum, maximum } of [schema, ...((schema["anyOf"] as Schema[] | undefined) ?? [])]) {
    if (typeof minimum === "number") values.push(minimum - 1, minimum - 0.001);
    if (typeof exclusiveMinimum === "number") values.push(exclusiveMinimum);
    if (typeof maximum === "number") values.push(maximum + 1, maximum + 0.001);
  }
  return values;
}

const anything = fc.oneof(
  fc.constantFrom<unknown>(null, true, -1, 0, 0.5, 1e300, -1e300, 2 ** 53, "", "x", [], {}, [[]], [null], [-1], { type: "text" }),
  fc.jsonValue({ maxDepth: 2 }),
);
/** The value with one place, anywhere in it, changed to something else, or with one field too many. */
function broken(value: unknown): fc.Arbitrary<unknown> {
  if (typeof value !== "object" || value === null) return anything;
  const entries = Object.entries(value);
  const changed = fc.nat(Math.max(0, entries.length - 1)).chain((i) => {
    const [key, inner] = entries[i] ?? ["", null];
    return fc.oneof(broken(inner), anything).map((other) => {
      if (Array.isArray(value)) return value.map((item: unknown, j) => (j === i ? other : item));
      return { ...value, [key]: other };
    });
  });
  const extra = Array.isArray(value)
    ? anything.map((item) => [...(value as unknown[]), item])
    : fc
        .tuple(fc.constantFrom("n", "extra", "Stream", "constructor", "toString"), anything)
        .map(([key, item]) => ({ ...value, [key]: item }));
  return entries.length === 0 ? fc.oneof(extra, anything) : fc.oneof({ weight: 4, arbitrary: changed }, { weight: 1, arbitrary: extra });
}

/** Short answers: what is asked for is valid, and not what is tried here. */
function short(body: unknown): unknown {
  if (typeof body !== "object" || body === null || Array.isArray(body)) return body;
  const fields: Record<string, unknown> = { ...body };
  for (const key of ["max_tokens", "max_completion_tokens", "max_output_tokens"])
    if (typeof fields[key] === "number" && Number.isSafeInteger(fields[key]) && fields[key] > 4 && fields[key] < 2 ** 31) fields[key] = 4;
  for (const key of ["n", "best_of"])
    if (typeof fields[key] === "number" && Number.isInteger(fields[key]) && fields[key] > 4 && fields[key] <= 128) fields[key] = 4;
  // Without a bound an answer fills the context.
  if (Array.isArray(fields["messages"]) && fields["max_tokens"] === undefined && fields["max_completion_tokens"] === undefined)
    fields["max_tokens"] = 3;
  if (fields["input"] !== undefined && fields["max_output_tokens"] === undefined && fields["dimensions"] === undefined)
    fields["max_output_tokens"] = 3;
  return fields;
}

async function send(path: string, body: unknown): Promise<{ status: number; text: string; isStream: boolean }> {
  const response = await fetch(`${server.url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const isStream = response.headers.get("content-type")?.startsWith("text/event-stream") === true;
  return { status: response.status, text: await response.text(), isStream };
}
/** Returns the status. */
async function check(path: string, schema: Schema, body: unknown): Promise<number> {
  const wire = JSON.parse(JSON.stringify(body)) as unknown;
  const isValid = fromJSONSchema(schema).safeParse(wire).success;
  const { status, text, isStream } = await send(path, wire);
  if (isStream) {
    expect(isValid, text).toBe(true);
    const last = text.trimEnd().split("\n\n").at(-1) ?? "";
    expect(last.startsWith("data: [DONE]") || last.startsWith("event: response."), last).toBe(true);
    return status;
  }
  const answer = JSON.parse(text) as Record<string, unknown>;
  if (status === 200) {
    expect(isValid, JSON.stringify(wire)).toBe(true);
    return status;
  }
  const error = errorOf({ status, body: answer, headers: new Headers() });
  const isForm = error.code === "invalid_value" || error.code === "unknown_parameter";
  expect([status, error.message, isForm]).toEqual([status === 404 ? 404 : 400, error.message, !isValid]);
  return status;
}

const withBody = operations.filter((operation) => "request" in operation);
test.each(withBody.map(({ path, request }) => [path, request.name] as const))(
  "%s: every field takes what the document allows, and of all else says which field it was",
  { timeout: 600_000 },
  async (path, name) => {
    const schema = schemas[name] ?? {};
    const fields = fieldsOf(schema);
    expect(fields.length).toBeGreaterThanOrEqual(Object.keys(schema["properties"] ?? {}).length);
    for (const field of fields) {
      const values = wrongValues(field.schema);
      const statuses = await Promise.all(
        values.map((value) => {
          const body = field.body(value);
          return check(path, schema, path === "/v1/embeddings" || path === "/tokenize" ? body : short(body));
        }),
      );
      // Fields that take anything apart, something among these is wrong.
      const own = fromJSONSchema(field.schema);
      if (!values.every((value) => own.safeParse(value).success)) expect(statuses, field.name).toContain(400);
    }
  },
);

describe("requests made from the document", () => {
  test.each(withBody.map(({ path, request }) => [path, request.name] as const))("%s", { timeout: 600_000 }, async (path, name) => {
    const schema = schemas[name] ?? {};
    const body = valid(schema).map((value) => (path === "/v1/embeddings" || path === "/tokenize" ? value : short(value)));
    const statuses = new Map<number, number>();
    await fc.assert(
      fc.asyncProperty(fc.oneof(body, body.chain(broken).map(short)), async (request) => {
        const status = await check(path, schema, request);
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
      }),
      { ...draws, endOnFailure: true },
    );
    // Both kinds were among them, or nothing was tried.
    expect(statuses.get(200) ?? 0).toBeGreaterThan(0);
    expect(statuses.get(400) ?? 0).toBeGreaterThan(0);
  });
});
