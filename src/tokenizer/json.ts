/** Reading fields of untrusted JSON: each function returns the value in the wanted type or throws a `file` error that
 * says where it is. `at` is a path such as `tokenizer.json: model.vocab`. */

import { fileError } from "../util/errors.ts";

export type JsonObject = Readonly<Record<string, unknown>>;

export function describe(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (typeof value === "string") return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}...` : value);
  if (typeof value === "object") return "an object";
  return String(value);
}

export function parseJson(text: string, at: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw fileError(at, "JSON", cause instanceof Error ? cause.message : String(cause), cause);
  }
}

export function asObject(value: unknown, at: string): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw fileError(at, "an object", describe(value));
  return value as JsonObject;
}

export function asArray(value: unknown, at: string): readonly unknown[] {
  if (!Array.isArray(value)) throw fileError(at, "an array", describe(value));
  return value;
}

export function asString(value: unknown, at: string): string {
  if (typeof value !== "string") throw fileError(at, "a string", describe(value));
  return value;
}

/** An integer in [0, limit). */
export function asIndex(value: unknown, limit: number, at: string): number {
  const number = typeof value === "bigint" ? Number(value) : value;
  if (typeof number !== "number" || !Number.isInteger(number) || number < 0 || number >= limit) {
    throw fileError(at, `an integer from 0 to ${limit - 1}`, describe(value));
  }
  return number;
}

export function asFinite(value: unknown, at: string): number {
  if (typeof value !== "number" || !Number.isFinite(value)) throw fileError(at, "a finite number", describe(value));
  return value;
}

export function optional<T>(value: unknown, read: (value: unknown, at: string) => T, at: string): T | undefined {
  return value === undefined || value === null ? undefined : read(value, at);
}

export function asBoolean(value: unknown, at: string): boolean {
  if (typeof value !== "boolean") throw fileError(at, "true or false", describe(value));
  return value;
}

/** A boolean field with the default that its format defines. */
export function flag(object: JsonObject, key: string, missing: boolean, at: string): boolean {
  return optional(object[key], asBoolean, `${at}.${key}`) ?? missing;
}
