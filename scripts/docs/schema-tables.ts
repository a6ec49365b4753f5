/**
 * The fields of a zod schema as Markdown tables, one an object: what a field is called, its type with bounds and unit, its default, and what it
 * is. Types, bounds and defaults come from zod (as JSON schema, of what a file may hold), texts from comments of the sources (`comments.ts`).
 */
import { z } from "zod";
import { signatureOf, type SchemaComments } from "./comments.ts";
import { unitOf } from "./units.ts";

/** What we read of a JSON schema as zod writes it. */
interface Json {
  readonly type?: string;
  readonly const?: unknown;
  readonly default?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly unknown[];
  readonly oneOf?: readonly unknown[];
  readonly properties?: Readonly<Record<string, unknown>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: unknown;
  readonly items?: unknown;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly minLength?: number;
  readonly minimum?: number;
  readonly exclusiveMinimum?: number;
  readonly maximum?: number;
  readonly exclusiveMaximum?: number;
}

export interface PartSchema {
  readonly schema: z.ZodType;
  /** Objects that another part of the page describes, by path, with its heading. */
  readonly elsewhere?: Readonly<Record<string, string>>;
}

export interface TextSource {
  readonly comments: ReadonlyMap<string, SchemaComments>;
  /** For fields without a comment, by path. */
  readonly texts: Readonly<Record<string, string>>;
}

/** Tables of a schema, and the paths whose text came from `texts`. Throws for a field that no text describes. */
export function schemaTables({ schema, elsewhere = {} }: PartSchema, source: TextSource): { markdown: string; usedTexts: string[] } {
  const tables = new Tables(source, elsewhere);
  tables.add("", toObject(z.toJSONSchema(schema, { io: "input" })), "");
  return { markdown: tables.sections.join("\n\n"), usedTexts: tables.usedTexts };
}

class Tables {
  readonly sections: string[] = [];
  readonly usedTexts: string[] = [];
  readonly #source: TextSource;
  readonly #elsewhere: Readonly<Record<string, string>>;
  /** Objects that have a table, with its path: one that comes again refers to it. */
  readonly #shown = new Map<string, string>();

  constructor(source: TextSource, elsewhere: Readonly<Record<string, string>>) {
    this.#source = source;
    this.#elsewhere = elsewhere;
  }

  /** The table of the object at `path` (empty: the part itself), then those of objects in it. */
  add(path: string, object: Json, variant: string): void {
    const properties = Object.entries(object.properties ?? {}).map(([key, value]) => [key, toObject(value)] as const);
    const signature = signatureOf(
      properties.map(([key, { const: value }]) => [key, value === undefined ? undefined : JSON.stringify(value)]),
    );
    const comments = this.#source.comments.get(signature);
    if (comments === undefined) throw new Error(`${path || "the schema"}: no source has an object with the keys ${signature}`);
    const required = new Set(object.required);
    const inner: (() => void)[] = [];
    const rows = properties.map(([key, value]) => {
      const at = path === "" ? key : `${path}.${key}`;
      const unit = unitOf(at);
      const type = `${this.#typeOf(at, value, inner)}${unit === "" ? "" : ` (${unit})`}`;
      const standard = required.has(key) ? "**required**" : defaultOf(value);
      return [`\`${key}\``, type, standard, this.#textOf(at, key, value, comments)];
    });
    const heading = path === "" ? [] : [`### \`${path}\`${variant === "" ? "" : ` with type \`${variant}\``}`];
    const text = path !== "" && variant !== "" && comments.text !== "" ? [escaped(comments.text)] : [];
    this.sections.push([...heading, ...text, table(rows)].join("\n\n"));
    for (const later of inner) later();
  }

  #textOf(at: string, key: string, value: Json, comments: SchemaComments): string {
    const text = comments.fields.get(key);
    if (text !== undefined) return escaped(text);
    if (value.const !== undefined) return "";
    const own = this.#source.texts[at];
    if (own === undefined) throw new Error(`${at}: no text describes this field; write a comment above it in src/config`);
    this.usedTexts.push(at);
    return escaped(own);
  }

  /** The type in words. Objects in it get their tables later, by what is pushed to `inner`. */
  #typeOf(at: string, value: Json, inner: (() => void)[]): string {
    const heading = this.#elsewhere[at];
    if (heading !== undefined) return `object, see [${heading}](#${heading.toLowerCase()})`;
    const choices = (value.anyOf ?? value.oneOf)?.map(toObject);
    if (choices !== undefined) return this.#choiceOf(at, choices, inner);
    if (value.const !== undefined) return `\`${JSON.stringify(value.const)}\``;
    if (value.enum !== undefined) return value.enum.map((word) => `\`${String(word)}\``).join(", ");
    if (value.type === "array") {
      const count = [
        value.minItems === undefined ? [] : `${value.minItems} or more`,
        value.maxItems === undefined ? [] : `at most ${value.maxItems}`,
      ];
      return [`list of: ${this.#typeOf(`${at}[]`, toObject(value.items), inner)}`, ...count.flat()].join("; ");
    }
    if (value.type !== "object") return simpleType(value);
    if (value.properties !== undefined) return this.#objectOf(at, value, "", inner);
    const values = toObject(value.additionalProperties ?? {});
    if (Object.keys(values).length === 0) return "object";
    return `object; under each name: ${this.#typeOf(`${at}.<name>`, values, inner)}`;
  }

  #choiceOf(at: string, choices: readonly Json[], inner: (() => void)[]): string {
    const words = choices.map((choice) => {
      const type = choice.properties?.["type"];
      const variant = type === undefined ? "" : String(toObject(type).const);
      if (variant === "") return this.#typeOf(at, choice, inner);
      inner.push(() => this.add(at, choice, variant));
      return `object with type \`${variant}\``;
    });
    return words.join(" or ");
  }

  #objectOf(at: string, object: Json, variant: string, inner: (() => void)[]): string {
    const shape = JSON.stringify(object.properties);
    const shown = this.#shown.get(shape);
    if (shown !== undefined) return `object like \`${shown}\``;
    this.#shown.set(shape, at);
    inner.push(() => this.add(at, object, variant));
    return "object";
  }
}

function toObject(value: unknown): Json {
  if (typeof value !== "object" || value === null) throw new Error(`expected a JSON schema, got ${String(value)}`);
  return value;
}

function simpleType({ type, minimum, exclusiveMinimum, maximum, exclusiveMaximum, minLength }: Json): string {
  if (type === "string") return minLength === undefined ? "text" : "text, not empty";
  if (type !== "number" && type !== "integer") return type === "boolean" ? "true or false" : String(type);
  const whole = type === "integer";
  const [least, above] = whole && exclusiveMinimum !== undefined ? [exclusiveMinimum + 1, undefined] : [minimum, exclusiveMinimum];
  const most = whole && maximum === Number.MAX_SAFE_INTEGER ? undefined : maximum;
  const bounds = [
    ...(least === undefined ? [] : [`≥ ${least}`]),
    ...(above === undefined ? [] : [`> ${above}`]),
    ...(most === undefined ? [] : [`≤ ${most}`]),
    ...(exclusiveMaximum === undefined ? [] : [`< ${exclusiveMaximum}`]),
  ];
  return [whole ? "integer" : "number", bounds.join(", ")].filter(Boolean).join(" ");
}

function defaultOf(value: Json): string {
  if (value.default === undefined) return "none";
  const text = JSON.stringify(value.default);
  return text === "{}" && value.properties !== undefined ? "its fields' own" : `\`${text}\``;
}

/** Text of a source in a cell of a table. */
export function escaped(text: string): string {
  return text
    .split(/(`[^`]*`)/)
    .map((part, i) => (i % 2 === 1 ? part : part.replaceAll("<", "&lt;").replaceAll("*", "\\*")))
    .join("")
    .replaceAll("|", "\\|");
}

function table(rows: readonly (readonly string[])[]): string {
  const head = ["field", "type (unit)", "default", "what"];
  return [head, head.map(() => "---"), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
}
