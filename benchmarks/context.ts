/** What the measurements of one run share: effort, which rows are wanted, the roof, and where progress is told. */
import { dtypeCodes } from "../src/backend/kernels.ts";
import type { Effort } from "./measure.ts";
import { PythonRival, type Roof } from "./process.ts";

export type Precision = "f32" | "bf16";
export const precisions = ["f32", "bf16"] as const satisfies readonly Precision[];

export interface Context {
  readonly effort: Effort;
  /** Rows whose name begins with this are measured. */
  readonly only: string;
  readonly roof: Roof;
  /** A line for the person who watches. */
  readonly log: (line: string) => void;
}

export function wants({ only }: Context, name: string): boolean {
  return name.startsWith(only);
}

/** The names among `names` that are wanted. */
export function wanted(context: Context, names: readonly string[]): string[] {
  return names.filter((name) => wants(context, name));
}

export function dtypeCode(precision: Precision): 0 | 1 {
  return dtypeCodes[precision];
}

/** A Python rival that knows operation `probe`, or why there is none. */
export async function startRival(probe: string, env: Readonly<Record<string, string>> = {}): Promise<PythonRival | string> {
  const rival = new PythonRival(env);
  try {
    await rival.call(probe);
    return rival;
  } catch (error) {
    rival[Symbol.dispose]();
    return `the rival does not run: ${messageOf(error)}`;
  }
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
}
