import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { fromJSONSchema } from "zod";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { Random } from "../../util/random.ts";
import type { TokenConstraint } from "../request.ts";
import { nothing } from "./grammar.ts";
import { compileAnyObject, compileJsonSchema } from "./json-schema.ts";
import { JsonConstraints } from "./token-mask.ts";

/** Which texts are in the language of a schema. */
function accepted(schema: unknown, texts: readonly string[]): string[] {
  const { grammar, root } = compileJsonSchema(schema);
  return texts.filter((text) => grammar.canEnd(new TextEncoder().encode(text).reduce((state, byte) => grammar.step(state, byte), root)));
}
function accepts(schema: unknown, text: string): boolean {
  return accepted(schema, [text]).length === 1;
}

const words = [
  '{"',
  '":',
  '": ',
  '",',
  '"}',
  "true",
  "false",
  "null",
  "\n  ",
  "}}",
  "]}",
  "12",
  "é",
  "日",
  "\\u",
  '\\"',
  "a",
  "name",
  "[[",
  "{}",
  "[]",
  "-1",
  ".5",
];
const endId = 256;
/** A token for each byte, an end, and some of several bytes, one of them half a character. */
const vocabulary = [
  ...Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte)),
  new Uint8Array(),
  ...words.map((word) => new TextEncoder().encode(word)),
  Uint8Array.of(0xe6, 0x97),
];
const tokenizer = {
  vocabSize: vocabulary.length,
  endIds: new Set([endId]),
  specialTokens: new Map(),
  idToBytes: (id: number) => vocabulary[id],
} as unknown as Tokenizer;
const constraints = new JsonConstraints(tokenizer, vocabulary.length);

function allowedIds(constraint: TokenConstraint): number[] {
  const { mask } = constraint.allowed();
  return [...vocabulary.keys()].filter((id) => (((mask[id >>> 5] ?? 0) >>> (id & 31)) & 1) === 1);
}
/** A text of random tokens that the constraint allows, closing what is open rather sooner than later. */
function write(constraint: TokenConstraint, random: Random): string {
  const closing = ['"', "]", "}", '"}', "]}"].map((text) => vocabulary.findIndex((bytes) => Buffer.from(bytes).toString() === text));
  const bytes: number[] = [];
  for (let n = 0; ; n++) {
    const ids = allowedIds(constraint);
    const { endAllowed } = constraint.allowed();
    if (ids.length === 0 || (endAllowed && random.uniform() < 0.3)) {
      expect(endAllowed, "a text that can neither end nor go on").toBe(true);
      return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
    }
    const ends = ids.filter((id) => closing.includes(id));
    const from = ends.length > 0 && random.uniform() < Math.min(0.9, 0.3 + n / 200) ? ends : ids;
    const id = from[random.integer(from.length)] ?? 0;
    constraint.accept(id);
    bytes.push(...(vocabulary[id] ?? []));
    if (n > 5000) throw new Error(`no end after ${Buffer.from(bytes).toString().slice(0, 200)}`);
  }
}

const { schema: anySchema } = fc.letrec<{ schema: Record<string, unknown> }>((tie) => {
  const count = fc.integer({ min: 0, max: 4 });
  const bounds = fc.tuple(fc.integer({ min: -200, max: 200 }), fc.integer({ min: 1, max: 300 }));
  return {
    schema: fc.oneof(
      { depthSize: "small" },
      fc.constantFrom(
        { type: "boolean" },
        { type: "null" },
        { type: "integer" },
        { type: "number" },
        { type: ["string", "null"] },
        { type: "object" },
        {},
      ),
      fc.tuple(count, count).map(([min, more]) => ({ type: "string", minLength: min, maxLength: min + more })),
      bounds.map(([minimum, width]) => ({ type: "integer", minimum, maximum: minimum + width })),
      bounds.map(([exclusiveMinimum, width]) => ({ type: "number", exclusiveMinimum, exclusiveMaximum: exclusiveMinimum + width + 1 })),
      bounds.map(([minimum]) => ({ type: "number", minimum })),
      fc.uniqueArray(fc.constantFrom("a", "ab", 'q"é', 12, null, true), { minLength: 1 }).map((values) => ({ enum: values })),
      fc.tuple(tie("schema"), count, count).map(([items, min, more]) => ({ type: "array", items, minItems: min, maxItems: min + more })),
      fc
        .tuple(
          fc.uniqueArray(fc.constantFrom("a", "b", "name", "日本"), { maxLength: 4 }),
          fc.array(tie("schema"), { minLength: 4, maxLength: 4 }),
          fc.integer({ min: 0, max: 15 }),
        )
        .map(([names, values, required]) => ({
          type: "object",
          properties: Object.fromEntries(names.map((name, i) => [name, values[i]])),
          required: names.filter((_, i) => (required >> i) & 1),
          additionalProperties: false,
        })),
      fc.tuple(tie("schema"), tie("schema")).map((anyOf) => ({ anyOf })),
      tie("schema").map((additionalProperties) => ({ type: "object", additionalProperties })),
    ),
  };
});

describe("texts under a schema", () => {
  test("are JSON that another validator finds valid, whatever tokens were chosen", { timeout: 120_000 }, () => {
    fc.assert(
      fc.property(anySchema, fc.integer({ min: 0, max: 1e6 }), (schema, seed) => {
        const random = new Random(seed);
        for (let i = 0; i < 3; i++) {
          const text = write(constraints.schema(schema), random);
          const result = fromJSONSchema(schema).safeParse(JSON.parse(text));
          expect(result.success, `${JSON.stringify(schema)}: ${text}: ${result.error?.message}`).toBe(true);
        }
      }),
      { numRuns: process.env["MOE_LONG"] === "1" ? 3000 : 150, seed: 3 },
    );
  });
  test("are what JSON.stringify writes, with and without blanks", () => {
    const schema = {
      type: "object",
      properties: { a: { type: "string" }, b: { type: "array", items: { type: "integer" } }, c: { type: "null" } },
      required: ["b"],
    };
    for (const value of [{ b: [] }, { a: 'x\n"é\u{1f600}', b: [1, -20, 0] }, { b: [5], c: null }, { a: "", b: [], c: null }])
      for (const indent of [undefined, 2]) expect(accepts(schema, JSON.stringify(value, null, indent)), JSON.stringify(value)).toBe(true);
    expect(
      accepted(schema, [
        '{"a":"x"}',
        '{"b":[],"a":""}',
        '{"b":[1.5]}',
        '{"b":[01]}',
        '{"b":[],}',
        '{,"b":[]}',
        '{"b":[]} ',
        '{"b":[],"d":1}',
      ]),
    ).toEqual([]);
    expect(accepts({}, JSON.stringify({ any: [1e-7, "x", null, { deep: [[]] }] }))).toBe(true);
  });
  test("hold whole numbers of exactly these bounds", () => {
    const numbers = Array.from({ length: 2401 }, (_, i) => i - 1200);
    for (const [minimum, maximum] of [
      [0, 0],
      [-3, 5],
      [7, 123],
      [-1105, -98],
      [99, 1001],
      [-1, 1000],
      [450, 449],
    ] as const) {
      const expected = numbers.filter((n) => n >= minimum && n <= maximum);
      if (expected.length === 0) expect(() => compileJsonSchema({ type: "integer", minimum, maximum })).toThrow(/no value satisfies it/);
      else expect(accepted({ type: "integer", minimum, maximum }, numbers.map(String)).map(Number)).toEqual(expected);
    }
    expect(accepted({ type: "integer", exclusiveMinimum: 2, maximum: 4.5 }, ["2", "3", "4", "5", "03", "3.0", "-0"])).toEqual(["3", "4"]);
  });
  test("hold decimal numbers within their bounds", () => {
    const texts = ["-1", "-0.5", "0", "0.0", "0.25", "0.999", "1", "1.0", "1.01", "12", "1e5"];
    expect(accepted({ type: "number", minimum: 0, maximum: 1 }, texts)).toEqual(["0", "0.0", "0.25", "0.999", "1"]);
    expect(accepted({ type: "number", exclusiveMinimum: 0, exclusiveMaximum: 1 }, texts)).toEqual(["0.25", "0.999"]);
    expect(accepted({ type: "number", maximum: 0 }, texts)).toEqual(["-1", "-0.5", "0"]);
    expect(() => compileJsonSchema({ type: "number", minimum: 0.2, maximum: 0.7 })).toThrow(/bounds less than one apart/);
  });
  test("may nest without end where the schema refers to itself", () => {
    const tree = {
      $ref: "#/$defs/node",
      $defs: {
        node: {
          type: "object",
          properties: { v: { type: "integer" }, kids: { type: "array", items: { $ref: "#/$defs/node" } } },
          required: ["v"],
          additionalProperties: false,
        },
      },
    };
    expect(accepts(tree, '{"v":1,"kids":[{"v":2},{"v":3,"kids":[{"v":4,"kids":[]}]}]}')).toBe(true);
    expect(accepts(tree, '{"v":1,"kids":[{"kids":[]}]}')).toBe(false);
  });
  test("of any object are objects", () => {
    const { grammar, root } = compileAnyObject();
    const state = new TextEncoder().encode('{"a": {"b": [1, 2.5e3, "\\u00e9", null]}}').reduce((s, byte) => grammar.step(s, byte), root);
    expect(grammar.canEnd(state)).toBe(true);
    expect(grammar.step(root, "[".charCodeAt(0))).toBe(nothing);
  });
  test("never hold half a character, a lone surrogate or a raw control character", () => {
    expect(accepted({ type: "string" }, ['"\\ud83d"', '"\\u00e9"', '"\n"', '"\\n"', '"\\x"', '"\u007f"'])).toEqual([
      '"\\u00e9"',
      '"\\n"',
      '"\u007f"',
    ]);
    expect(accepted({ type: "string", minLength: 2, maxLength: 3 }, ['"é"', '"é日"', '"\u{1f600}\u{1f600}a"', '"abcd"'])).toEqual([
      '"é日"',
      '"\u{1f600}\u{1f600}a"',
    ]);
  });
});

describe("masks", () => {
  test("are those of trying every token by itself", () => {
    fc.assert(
      fc.property(anySchema, fc.integer({ min: 0, max: 1e6 }), (schema, seed) => {
        const { grammar, root } = compileJsonSchema(schema);
        const constraint = constraints.schema(schema);
        const random = new Random(seed);
        let state = root;
        for (let n = 0; n < 12; n++) {
          const allowed = allowedIds(constraint);
          const after = (id: number): number => Array.from(vocabulary[id] ?? []).reduce((at, byte) => grammar.step(at, byte), state);
          const tried = [...vocabulary.keys()].filter((id) => (vocabulary[id]?.length ?? 0) > 0 && after(id) !== nothing);
          expect(allowed).toEqual(tried);
          const id = allowed[random.integer(Math.max(1, allowed.length))];
          if (id === undefined) break;
          constraint.accept(id);
          state = after(id);
        }
      }),
      { numRuns: 60, seed: 4 },
    );
  });
  test("of a clone go their own way", () => {
    const one = constraints.schema({ enum: ["ab", "cd"] });
    one.accept(0x22);
    const other = one.clone();
    one.accept("a".charCodeAt(0));
    expect(allowedIds(other).map((id) => Buffer.from(vocabulary[id] ?? []).toString())).toEqual(["a", "c", "a"]);
    expect(() => other.accept("b".charCodeAt(0))).toThrow(/was not allowed/);
  });
});

describe("schemas are refused by name and place", () => {
  test.each([
    [{ type: "string", pattern: "a+" }, /#: pattern is not supported/],
    [{ type: "object", properties: { a: { type: "number", multipleOf: 3 } } }, /#\/properties\/a: multipleOf is not supported/],
    [{ type: "string", minimum: 3 }, /minimum does not apply to string/],
    [{ type: "text" }, /type: expected object, array, .*, got "text"/],
    [{ enum: [] }, /enum: expected a list with something in it/],
    [{ type: "integer", minimum: 3, maximum: 2 }, /no value satisfies it/],
    [{ enum: ["a"], type: "integer" }, /no value satisfies it/],
    [{ type: "object", required: ["a"], additionalProperties: false }, /no value satisfies it/],
    [
      { $ref: "#/$defs/a", $defs: { a: { type: "object", properties: { a: { $ref: "#/$defs/a" } }, required: ["a"] } } },
      /no value satisfies it/,
    ],
    [{ anyOf: [{ $ref: "#" }, { type: "null" }] }, /# refers to itself with nothing between/],
    [{ $ref: "#/nowhere" }, /\$ref #\/nowhere names nothing/],
    [{ $ref: "https://example.org/s.json" }, /expected a reference within the schema/],
    [{ oneOf: [{ type: "string" }, { type: ["string", "null"] }] }, /not plainly exclusive/],
    [{ anyOf: [{ type: "string" }], properties: {} }, /properties beside anyOf/],
    [{ type: "array", minItems: -1 }, /minItems: expected a whole number of at least 0, got -1/],
    [{ type: "string", maxLength: 1e9 }, /at most 10000/],
    [false, /no value satisfies it/],
    ["x", /expected an object or a boolean, got "x"/],
    [null, /got null/],
  ])("%j", (schema, message) => {
    expect(() => compileJsonSchema(schema)).toThrow(message);
  });
  test("but exclusive alternatives are taken", () => {
    const kind = (value: string): unknown => ({
      type: "object",
      properties: { kind: { const: value }, n: { type: "integer" } },
      required: ["kind"],
      additionalProperties: false,
    });
    expect(accepted({ oneOf: [kind("a"), kind("b")] }, ['{"kind":"a","n":1}', '{"kind":"b"}', '{"kind":"c"}'])).toHaveLength(2);
    expect(accepted({ oneOf: [{ type: "integer" }, { type: "null" }] }, ["1", "null", "x"])).toEqual(["1", "null"]);
  });
});
