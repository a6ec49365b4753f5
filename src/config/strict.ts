/**
 * Turns what zod finds wrong into our errors: every problem on a line, unknown keys with the nearest known one, values
 * printed. Schemas stay plain zod objects made strict by `z.strictObject`.
 */
import { z } from "zod";
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";

/** Parses `value` or throws a `configuration` error that starts with `what` (a file name, "recipe x"). */
export function parseStrict<T extends z.ZodType>(schema: T, value: unknown, what: string): z.output<T> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const lines = result.error.issues.flatMap((issue) => describe(schema, value, issue));
  throw new MoeError("configuration", `${what}: ${lines.join("; ")}`);
}

function describe(schema: z.ZodType, value: unknown, issue: z.core.$ZodIssue): string[] {
  const path = issue.path.map(String);
  if (issue.code === "unrecognized_keys") {
    const known = knownKeys(schema, path);
    return issue.keys.map((key) => `unknown key "${[...path, key].join(".")}"${didYouMean(key, known)}`);
  }
  const got: unknown = path.reduce<unknown>(
    (v, key) => (typeof v === "object" && v !== null ? (v as Record<string, unknown>)[key] : undefined),
    value,
  );
  return [`${path.join(".") || "value"}: ${issue.message}${got === undefined ? "" : `, got ${JSON.stringify(got)}`}`];
}

/** Keys of the object schema at `path`, looking through optional, default and nullable wrappers, into lists and records. */
function knownKeys(schema: z.ZodType, path: readonly string[]): string[] {
  let current: z.ZodType | undefined = unwrapped(schema);
  for (const key of path) current = unwrapped(memberOf(current, key));
  return current instanceof z.ZodObject ? Object.keys(current.shape) : [];
}

function memberOf(schema: z.ZodType | undefined, key: string): z.ZodType | undefined {
  if (schema instanceof z.ZodObject) return schema.shape[key] as z.ZodType | undefined;
  if (schema instanceof z.ZodArray) return schema.element as z.ZodType;
  return schema instanceof z.ZodRecord ? (schema.valueType as z.ZodType) : undefined;
}

function unwrapped(schema: z.ZodType | undefined): z.ZodType | undefined {
  let current = schema;
  while (
    current instanceof z.ZodOptional ||
    current instanceof z.ZodDefault ||
    current instanceof z.ZodNullable ||
    current instanceof z.ZodPrefault
  ) {
    current = current.unwrap() as z.ZodType;
  }
  return current;
}
