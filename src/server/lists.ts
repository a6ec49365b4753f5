/**
 * Lists of untrusted length as zod schemas. A plain `z.array` makes an issue of every wrong element: a megabyte of them would hold up
 * the event loop for a second. These stop at the first. In the OpenAPI document they are what they stand for.
 */
import { z } from "zod";

function withJsonSchemaOf<T>(schema: z.ZodType<T>, check: (value: unknown, ctx: z.core.$RefinementCtx) => void): z.ZodType<T> {
  const { $schema: _, ...json } = z.toJSONSchema(schema, { io: "output" });
  return z.unknown().superRefine(check).meta(json) as unknown as z.ZodType<T>;
}
function issue(ctx: z.core.$RefinementCtx, message: string, path: PropertyKey[] = []): void {
  ctx.addIssue({ code: "custom", message, path });
}

interface Bounds {
  readonly min?: number;
  readonly max?: number;
}

/** A list of elements, looked at up to the first wrong one. */
export function listOf<T>(element: z.ZodType<T>, { min = 0, max = 4096 }: Bounds = {}): z.ZodType<T[]> {
  return withJsonSchemaOf(z.array(element).min(min).max(max), (value, ctx) => {
    if (!Array.isArray(value)) issue(ctx, "expected a list");
    else if (value.length < min || value.length > max) issue(ctx, `expected ${min} to ${max} items, got ${value.length}`);
    else checkElements(element, value, ctx);
  });
}
function checkElements(element: z.ZodType, values: readonly unknown[], ctx: z.core.$RefinementCtx): void {
  for (const [i, item] of values.entries()) {
    const result = element.safeParse(item);
    const first = result.error?.issues[0];
    if (first === undefined) continue;
    // A copy of the issue, one level deeper: unions keep what each alternative lacked.
    ctx.issues.push({ ...first, path: [i, ...first.path], input: item, continue: false } as z.core.$ZodRawIssue);
    return;
  }
}

export const maxTokenId = 2 ** 31 - 1;
const idSchema = z.array(z.int().min(0).max(maxTokenId));

function wrongId(values: readonly unknown[]): number {
  return values.findIndex((id) => !(typeof id === "number" && Number.isInteger(id) && id >= 0 && id <= maxTokenId));
}
function checkIds(values: readonly unknown[], min: number, ctx: z.core.$RefinementCtx, path: PropertyKey[] = []): boolean {
  const wrong = wrongId(values);
  if (values.length < min) issue(ctx, `expected at least ${min} token ids`, path);
  else if (wrong >= 0) issue(ctx, `expected a whole number from 0 to ${maxTokenId}`, [...path, wrong]);
  else return true;
  return false;
}

/** Token ids. */
export function idList({ min = 0 }: { readonly min?: number } = {}): z.ZodType<number[]> {
  return withJsonSchemaOf(idSchema.min(min), (value, ctx) => {
    if (!Array.isArray(value)) issue(ctx, "expected a list of token ids");
    else checkIds(value, min, ctx);
  });
}

/** One or several prompts: a text, token ids, or a list of either. */
export function promptList(maxPrompts: number): z.ZodType<string | string[] | number[] | number[][]> {
  const texts = z.array(z.string()).min(1).max(maxPrompts);
  const ids = idSchema.min(1);
  const schema = z.union([z.string(), texts, ids, z.array(ids).min(1).max(maxPrompts)]);
  return withJsonSchemaOf(schema, (value, ctx) => {
    if (typeof value === "string") return;
    if (!Array.isArray(value) || value.length === 0) return issue(ctx, "expected a text, token ids, or a list of either that is not empty");
    if (typeof value[0] === "number") return void checkIds(value, 1, ctx);
    if (value.length > maxPrompts) return issue(ctx, `expected at most ${maxPrompts} prompts, got ${value.length}`);
    const isText = typeof value[0] === "string";
    for (const [i, item] of (value as unknown[]).entries()) {
      if (isText ? typeof item !== "string" : !Array.isArray(item))
        return issue(ctx, `expected ${isText ? "a text" : "token ids"} as the first`, [i]);
      if (!isText && !checkIds(item as unknown[], 1, ctx, [i])) return;
    }
  });
}

/** Token id, as JSON spells keys, to a number from -100 to 100. */
export function biasMap(maxEntries: number): z.ZodType<Record<string, number>> {
  const key = /^[0-9]{1,9}$/;
  const schema = z.record(z.string().regex(key), z.number().min(-100).max(100));
  return withJsonSchemaOf(schema, (value, ctx) => {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return issue(ctx, "expected an object of token ids");
    const entries = Object.entries(value);
    if (entries.length > maxEntries) return issue(ctx, `expected at most ${maxEntries} entries, got ${entries.length}`);
    for (const [id, bias] of entries) {
      if (!key.test(id)) return issue(ctx, "expected a token id as key", [id]);
      if (!(typeof bias === "number" && bias >= -100 && bias <= 100)) return issue(ctx, "expected a number from -100 to 100", [id]);
    }
  });
}
