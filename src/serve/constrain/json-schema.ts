/**
 * A JSON schema (draft 2020-12, the part below) as a language of bytes. Every text of the language is valid under the schema; the
 * reverse is not promised: properties come in the order of the schema, beside listed properties there are no others, and numbers
 * have at most 15 digits. What is not supported is refused by name and place, never ignored.
 *
 * Supported: type (one or several), properties, required, additionalProperties (without properties: a map; else only "no others"),
 * items, prefixItems, minItems, maxItems, minLength, maxLength, minimum, maximum, exclusiveMinimum, exclusiveMaximum, enum, const,
 * anyOf, oneOf (where no value fits two), allOf of one, $ref into the same schema (recursive too), true and false.
 */
import { MoeError } from "../../util/errors.ts";
import { Grammar, nothing, type Expression } from "./grammar.ts";
import { JsonGrammar } from "./json-grammar.ts";

type Schema = Readonly<Record<string, unknown>>;

const types = ["object", "array", "string", "number", "integer", "boolean", "null"] as const;
type Type = (typeof types)[number];

/** Keywords that say nothing about what is valid. */
const annotations = [
  "title",
  "description",
  "default",
  "examples",
  "deprecated",
  "readOnly",
  "writeOnly",
  "$schema",
  "$id",
  "$comment",
  "$defs",
  "definitions",
];
const keywordsOf: Readonly<Record<Type, readonly string[]>> = {
  object: ["properties", "required", "additionalProperties"],
  array: ["items", "prefixItems", "minItems", "maxItems"],
  string: ["minLength", "maxLength"],
  number: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
  integer: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
  boolean: [],
  null: [],
};
/** Items or characters that a bound may name at most: each is a state. */
const largestBound = 10_000;
const maxDepth = 64;

export interface CompiledSchema {
  readonly grammar: Grammar;
  readonly root: Expression;
}

/** Throws `unsupported` for keywords and references that it does not know, `configuration` for a schema that is none or that nothing satisfies. */
export function compileJsonSchema(schema: unknown): CompiledSchema {
  return new SchemaCompiler(schema).compile();
}
/** Any JSON object: OpenAI's `json_object`. */
export function compileAnyObject(): CompiledSchema {
  return compileJsonSchema({ type: "object" });
}

class SchemaCompiler {
  readonly #root: unknown;
  readonly #grammar = new Grammar();
  readonly #json = new JsonGrammar(this.#grammar);
  readonly #known = new Set<string>();

  constructor(root: unknown) {
    this.#root = root;
  }
  compile(): CompiledSchema {
    const root = this.#reference("#", "#");
    if (!this.#grammar.close(root)) throw new MoeError("configuration", "schema: no value satisfies it");
    return { grammar: this.#grammar, root };
  }

  #reference(pointer: string, at: string): Expression {
    if (!this.#known.has(pointer)) {
      this.#known.add(pointer);
      this.#grammar.define(pointer, this.#schema(resolve(this.#root, pointer, at), pointer, 0));
    }
    return this.#grammar.reference(pointer);
  }
  #schema(schema: unknown, at: string, depth: number): Expression {
    if (depth > maxDepth) throw new MoeError("unsupported", `schema: ${at}: nested deeper than ${maxDepth}`);
    if (schema === true) return this.#json.anyValue();
    if (schema === false) return nothing;
    if (typeof schema !== "object" || schema === null || Array.isArray(schema))
      throw new MoeError("configuration", `schema: ${at}: expected an object or a boolean, got ${JSON.stringify(schema) ?? typeof schema}`);
    return this.#object(schema as Schema, at, depth);
  }
  #object(schema: Schema, at: string, depth: number): Expression {
    const declared = declaredTypes(schema, at);
    const keywords = Object.keys(schema).filter((key) => !annotations.includes(key) && key !== "type");
    const alone = keywords.find((key) => ["$ref", "anyOf", "oneOf", "allOf", "enum", "const"].includes(key));
    if (alone !== undefined) {
      const other = keywords.find((key) => key !== alone);
      if (other !== undefined) throw new MoeError("unsupported", `schema: ${at}: ${other} beside ${alone}`);
      return this.#alone(schema, alone, declared, at, depth);
    }
    const wanted = declared ?? inferredTypes(keywords);
    const allowed = new Set(wanted.flatMap((type) => keywordsOf[type]));
    const unknown = keywords.find((key) => !allowed.has(key));
    if (unknown !== undefined) {
      const exists = Object.values(keywordsOf).some((list) => list.includes(unknown));
      throw new MoeError(
        "unsupported",
        `schema: ${at}: ${unknown} ${exists ? `does not apply to ${wanted.join(" or ")}` : "is not supported"}`,
      );
    }
    if (declared === null && keywords.length === 0) return this.#json.anyValue();
    return this.#grammar.choice(...wanted.map((type) => this.#typed(type, schema, at, depth)));
  }
  /** Keywords that say everything by themselves. */
  #alone(schema: Schema, keyword: string, declared: readonly Type[] | null, at: string, depth: number): Expression {
    const value = schema[keyword];
    if (keyword === "enum" || keyword === "const") {
      const values = keyword === "const" ? [value] : listAt(schema, keyword, at);
      const fitting = values.filter((one) => declared === null || declared.some((type) => hasType(one, type)));
      return this.#grammar.choice(...fitting.map((one) => this.#json.literal(one)));
    }
    if (declared !== null) throw new MoeError("unsupported", `schema: ${at}: type beside ${keyword}`);
    if (keyword === "$ref") {
      if (typeof value !== "string" || !value.startsWith("#"))
        throw new MoeError(
          "unsupported",
          `schema: ${at}: $ref: expected a reference within the schema (#/...), got ${JSON.stringify(value)}`,
        );
      return this.#reference(value, at);
    }
    const parts = listAt(schema, keyword, at);
    if (keyword === "allOf" && parts.length !== 1) throw new MoeError("unsupported", `schema: ${at}: allOf of ${parts.length} schemas`);
    if (keyword === "oneOf") this.#checkDisjoint(parts, at);
    return this.#grammar.choice(...parts.map((part, i) => this.#schema(part, `${at}/${keyword}/${i}`, depth + 1)));
  }
  /** `oneOf` is `anyOf` where no value can fit two: other types, or a required property with other constants. */
  #checkDisjoint(parts: readonly unknown[], at: string): void {
    const resolved = parts.map((part) => {
      const reference = isObject(part) ? part["$ref"] : undefined;
      return typeof reference === "string" ? resolve(this.#root, reference, at) : part;
    });
    for (const [i, a] of resolved.entries())
      for (const b of resolved.slice(0, i))
        if (!isObject(a) || !isObject(b) || !areDisjoint(a, b))
          throw new MoeError(
            "unsupported",
            `schema: ${at}: oneOf whose schemas are not plainly exclusive (by type, or by the constant of a required property); use anyOf`,
          );
  }

  #typed(type: Type, schema: Schema, at: string, depth: number): Expression {
    switch (type) {
      case "null":
        return this.#json.literal(null);
      case "boolean":
        return this.#grammar.choice(this.#json.literal(true), this.#json.literal(false));
      case "string":
        return this.#json.string(countAt(schema, "minLength", 0, at), countAt(schema, "maxLength", Number.POSITIVE_INFINITY, at));
      case "array":
        return this.#array(schema, at, depth);
      case "object":
        return this.#properties(schema, at, depth);
      case "number":
      case "integer":
        return this.#number(type, schema, at);
      default:
        return type satisfies never;
    }
  }
  #number(type: "number" | "integer", schema: Schema, at: string): Expression {
    const bound = (key: string): number | null => {
      const value = schema[key];
      if (value === undefined) return null;
      if (typeof value !== "number" || !Number.isFinite(value))
        throw new MoeError("configuration", `schema: ${at}: ${key}: expected a number, got ${JSON.stringify(value)}`);
      return value;
    };
    const [min, above, max, below] = [bound("minimum"), bound("exclusiveMinimum"), bound("maximum"), bound("exclusiveMaximum")];
    if (min === null && above === null && max === null && below === null)
      return type === "integer" ? this.#json.integer() : this.#json.number();
    const low = Math.max(min ?? Number.NEGATIVE_INFINITY, above ?? Number.NEGATIVE_INFINITY);
    const high = Math.min(max ?? Number.POSITIVE_INFINITY, below ?? Number.POSITIVE_INFINITY);
    const exclusive = { min: low === above, max: high === below };
    if (type === "number") {
      const result = this.#json.numberBetween(low, high, exclusive);
      if (result === nothing && low < high)
        throw new MoeError("unsupported", `schema: ${at}: numbers between ${low} and ${high}: bounds less than one apart`);
      return result;
    }
    const from = exclusive.min ? Math.floor(low) + 1 : Math.ceil(low);
    const to = exclusive.max ? Math.ceil(high) - 1 : Math.floor(high);
    return from <= to ? this.#json.integerBetween(from, to) : nothing;
  }
  #array(schema: Schema, at: string, depth: number): Expression {
    const min = countAt(schema, "minItems", 0, at);
    const max = countAt(schema, "maxItems", Number.POSITIVE_INFINITY, at);
    const items = this.#schema(schema["items"] ?? true, `${at}/items`, depth + 1);
    if (schema["prefixItems"] === undefined) return this.#json.array(items, min, items === nothing ? 0 : max);
    const prefix = listAt(schema, "prefixItems", at).map((item, i) => this.#schema(item, `${at}/prefixItems/${i}`, depth + 1));
    // All items of the prefix are written, so that a bound below or above their number has one meaning.
    if (min > prefix.length || max < prefix.length)
      throw new MoeError("unsupported", `schema: ${at}: minItems ${min} and maxItems ${max} beside ${prefix.length} prefixItems`);
    return this.#json.tuple(prefix, items, max - prefix.length);
  }
  #properties(schema: Schema, at: string, depth: number): Expression {
    const { properties = {}, required = [], additionalProperties = true } = schema;
    if (!isObject(properties)) throw new MoeError("configuration", `schema: ${at}: properties: expected an object`);
    if (!Array.isArray(required) || !required.every((name) => typeof name === "string"))
      throw new MoeError("configuration", `schema: ${at}: required: expected a list of names, got ${JSON.stringify(required)}`);
    const additional = this.#schema(additionalProperties, `${at}/additionalProperties`, depth + 1);
    const listed = Object.entries(properties).map(([name, value]) => ({
      name,
      value: this.#schema(value, `${at}/properties/${name}`, depth + 1),
      required: required.includes(name),
    }));
    // Required without being listed: a value as any other property may have.
    const rest = required.filter((name) => !Object.hasOwn(properties, name)).map((name) => ({ name, value: additional, required: true }));
    return this.#json.object([...listed, ...new Map(rest.map((entry) => [entry.name, entry])).values()], additional, 0);
  }
}

function isObject(value: unknown): value is Schema {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
function declaredTypes(schema: Schema, at: string): readonly Type[] | null {
  const { type } = schema;
  if (type === undefined) return null;
  const list: readonly unknown[] = Array.isArray(type) ? type : [type];
  return list.map((name) => {
    const known = types.find((one) => one === name);
    if (known === undefined)
      throw new MoeError("configuration", `schema: ${at}: type: expected ${types.join(", ")}, got ${JSON.stringify(name)}`);
    return known;
  });
}
/** Without a type, keywords say what they are about: `properties` alone is meant for objects. */
function inferredTypes(keywords: readonly string[]): readonly Type[] {
  const found = types.filter((type) => type !== "integer" && keywordsOf[type].some((key) => keywords.includes(key)));
  return found.length === 1 ? found : types.filter((type) => type !== "integer");
}
function hasType(value: unknown, type: Type): boolean {
  if (type === "null") return value === null;
  if (type === "array") return Array.isArray(value);
  if (type === "object") return isObject(value);
  if (type === "integer") return Number.isInteger(value);
  return typeof value === type;
}
function listAt(schema: Schema, key: string, at: string): readonly unknown[] {
  const value = schema[key];
  if (!Array.isArray(value) || value.length === 0)
    throw new MoeError("configuration", `schema: ${at}: ${key}: expected a list with something in it`);
  return value;
}
function countAt(schema: Schema, key: string, absent: number, at: string): number {
  const value = schema[key];
  if (value === undefined) return absent;
  if (!Number.isSafeInteger(value) || (value as number) < 0)
    throw new MoeError("configuration", `schema: ${at}: ${key}: expected a whole number of at least 0, got ${JSON.stringify(value)}`);
  if ((value as number) > largestBound)
    throw new MoeError("unsupported", `schema: ${at}: ${key} ${String(value)}: at most ${largestBound}`);
  return value as number;
}
/** What a reference within the schema names (RFC 6901). */
function resolve(root: unknown, pointer: string, at: string): unknown {
  let value = root;
  for (const part of decodeURIComponent(pointer).split("/").slice(1)) {
    const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
    if (typeof value !== "object" || value === null || !Object.hasOwn(value, key))
      throw new MoeError("configuration", `schema: ${at}: $ref ${pointer} names nothing`);
    value = (value as Schema)[key];
  }
  return value;
}

/** Constants that a schema allows; null where it says nothing of the kind. */
function constantsOf(schema: unknown): readonly string[] | null {
  if (!isObject(schema)) return null;
  const values = "const" in schema ? [schema["const"]] : schema["enum"];
  return Array.isArray(values) ? values.map((value) => JSON.stringify(value)) : null;
}
function areDisjoint(a: Schema, b: Schema): boolean {
  const [one, other] = [constantsOf(a), constantsOf(b)];
  if (one !== null && other !== null) return !one.some((value) => other.includes(value));
  const kinds = (schema: Schema): unknown[] => [schema["type"]].flat().map((type) => (type === "integer" ? "number" : type));
  const [typesA, typesB] = [kinds(a), kinds(b)];
  if (!typesA.includes(undefined) && !typesB.includes(undefined) && !typesA.some((type) => typesB.includes(type))) return true;
  const isRequired = (schema: Schema, name: string): boolean => Array.isArray(schema["required"]) && schema["required"].includes(name);
  const [propertiesA, propertiesB] = [a["properties"], b["properties"]];
  if (!isObject(propertiesA) || !isObject(propertiesB)) return false;
  return Object.keys(propertiesA).some((name) => {
    const [valuesA, valuesB] = [constantsOf(propertiesA[name]), constantsOf(propertiesB[name])];
    return (
      isRequired(a, name) &&
      isRequired(b, name) &&
      valuesA !== null &&
      valuesB !== null &&
      !valuesA.some((value) => valuesB.includes(value))
    );
  });
}
