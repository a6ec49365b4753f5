/**
 * From a parsed line of somebody else's file to numbers: whatever it is, what comes out has the promised types, and depth, length and number
 * of keys are bounded. Nothing here throws.
 */
import type { Json } from "./api.ts";

export function asObject(value: unknown): Readonly<Record<string, unknown>> | null {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : null;
}
export function asArray(value: unknown): readonly unknown[] {
  return Array.isArray(value) ? value : [];
}
/** NaN for everything that is no finite number. */
export function asNumber(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) ? value : Number.NaN;
}
export function asCount(value: unknown): number | null {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 ? value : null;
}
/** Text of at most `length` characters, or null. */
export function asText(value: unknown, length = 1000): string | null {
  return typeof value === "string" ? value.slice(0, length) : null;
}

export interface Bounds {
  readonly depth: number;
  /** Values in all. */
  readonly values: number;
  readonly text: number;
}
const standard: Bounds = { depth: 12, values: 50_000, text: 4000 };

/** A copy of parsed JSON that is safe to send: cut in depth, number of values and length of texts, where it says so with "...". */
export function boundedJson(value: unknown, bounds: Bounds = standard): Json {
  let left = bounds.values;
  const copy = (value: unknown, depth: number): Json => {
    if (left-- <= 0) return "...";
    if (typeof value === "string") return value.length > bounds.text ? `${value.slice(0, bounds.text)}...` : value;
    if (typeof value === "number") return Number.isFinite(value) ? value : null;
    if (typeof value === "boolean" || value === null) return value;
    if (depth <= 0) return "...";
    if (Array.isArray(value)) {
      const items: Json[] = [];
      for (const item of value) {
        if (left <= 0) break;
        items.push(copy(item, depth - 1));
      }
      return items;
    }
    const entries: [string, Json][] = [];
    for (const [key, item] of Object.entries(value ?? {})) {
      if (left <= 0) break;
      entries.push([key.slice(0, 200), copy(item, depth - 1)]);
    }
    // Own properties even for a key like __proto__.
    return Object.fromEntries(entries);
  };
  return copy(value, bounds.depth);
}

/** JSON of a text, or undefined. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

/** Visits the finite numbers of an object and of the objects in it, two levels down, as `a.b.c`; arrays are passed over. */
export function eachNumber(
  value: Readonly<Record<string, unknown>>,
  visit: (path: string, value: number) => void,
  depth = 2,
  prefix = "",
): void {
  for (const key in value) {
    if (!/^[\w-]{1,40}$/.test(key)) continue;
    const item = value[key];
    if (typeof item === "number") {
      if (Number.isFinite(item)) visit(prefix + key, item);
    } else if (depth > 0) {
      const inner = asObject(item);
      if (inner !== null) eachNumber(inner, visit, depth - 1, `${prefix}${key}.`);
    }
  }
}
