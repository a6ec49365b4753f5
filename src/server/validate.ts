/** A request body against its schema; what is wrong with it as one error that names the field. */
import { z } from "zod";
import { didYouMean } from "../util/nearest.ts";
import { badRequest } from "./errors.ts";

/** Parses `body` or throws a 400 that names the first wrong field and what was expected. */
export function parseBody<T extends z.ZodType>(schema: T, body: unknown): z.output<T> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const [first] = result.error.issues;
  if (first === undefined) throw badRequest("request body: not valid");
  const { path, message } = deepest(first);
  const param = path.map(String).join(".");
  if (first.code === "unrecognized_keys" && first.path.length === 0) {
    const key = first.keys[0] ?? "";
    const known = schema instanceof z.ZodObject ? Object.keys(schema.shape) : [];
    throw badRequest(
      `unknown field ${JSON.stringify(key.slice(0, 100))}${didYouMean(key.slice(0, 100), known)}`,
      key.slice(0, 100),
      "unknown_parameter",
    );
  }
  throw badRequest(`${param === "" ? "request body" : param}: ${message}`, param === "" ? null : param, "invalid_value");
}

interface Found {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

/** The issue that says most: of a union's alternatives, that which got furthest. */
function deepest(issue: z.core.$ZodIssue): Found {
  const own: Found = { path: issue.path, message: issue.message };
  if (issue.code !== "invalid_union") return own;
  const inner = issue.errors
    .flatMap((alternative) => alternative.slice(0, 1))
    .map(deepest)
    .toSorted((a, b) => b.path.length - a.path.length)[0];
  if (inner === undefined || inner.path.length === 0) {
    const alternatives = issue.errors.map(([first]) => first?.message).filter((text) => text !== undefined);
    return { path: issue.path, message: [...new Set(alternatives)].join(", or ") || issue.message };
  }
  return { path: [...issue.path, ...inner.path], message: inner.message };
}

/** Decodes a body of bytes: UTF-8, then JSON of bounded depth. Throws a 400. */
export function decodeJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw badRequest("request body: expected UTF-8, got other bytes", null, "invalid_utf8");
  }
  checkDepth(text);
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw badRequest(`request body: expected JSON: ${error instanceof Error ? error.message : String(error)}`, null, "invalid_json");
  }
}

/** Brackets within brackets that a body may have: what walks it later is recursive. */
const maxDepth = 128;

function checkDepth(text: string): void {
  let depth = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (inString) {
      if (c === 0x5c) i++;
      else if (c === 0x22) inString = false;
    } else if (c === 0x22) inString = true;
    else if (c === 0x7b || c === 0x5b) {
      if (++depth > maxDepth) throw badRequest(`request body: nested more than ${maxDepth} deep`, null, "invalid_json");
    } else if (c === 0x7d || c === 0x5d) depth--;
  }
}
