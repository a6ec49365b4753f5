/**
 * Runs over ranks in bf16 beside one rank. Sums over ranks are rounded at other places than one rank's, so the bits differ; what is compared is
 * what bf16 leaves to compare: losses within its rounding, and weights that moved the same way.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startRanks } from "../../src/parallel/index.ts";
import { unevenTokens } from "../train/harness.ts";
import type { EqualityJob, LayoutCase, Outcome } from "./job.ts";

const numSteps = 20;
const run = { precision: "bf16" } as const;
const cases: readonly LayoutCase[] = [
  { name: "one rank", model: "skywork", layout: {}, run },
  { name: "tp 2 (EDP), sequence parallelism, overlap", model: "skywork", layout: { tp: 2, sequenceParallel: true, overlap: true }, run },
  { name: "dp 2 (EP), ZeRO-1", model: "skywork", layout: { dp: 2, strategy: "EP", zero: 1 }, run },
  { name: "dp 2, tp 2 (ETP), ZeRO-1", model: "skywork", layout: { dp: 2, tp: 2, strategy: "ETP", zero: 1 }, run },
  { name: "pp 2, tp 2 (EDP), recomputation", model: "skywork", layout: { pp: 2, tp: 2, recompute: [1, 0] }, run },
];
const folder = mkdtempSync(join(tmpdir(), "moe-bf16-ranks-"));
let outcomes: readonly (Outcome | null)[] = [];

beforeAll(async () => {
  unevenTokens(folder)[Symbol.dispose]();
  const job: EqualityJob = { cases, folder, numSteps };
  const entry = new URL("./rank.ts", import.meta.url);
  const results = await startRanks({ size: 4, entry, data: job, backend: { numThreads: 1 }, timeoutMs: 120_000 }).results;
  outcomes = (results as (Outcome | null)[][])[0] ?? [];
}, 120_000);
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** Relative L2 distance of all weights together. */
function distance(a: Outcome, b: Outcome): number {
  let [apart, size] = [0, 0];
  for (const [name, ours] of a.weights) {
    const theirs = b.weights.get(name) ?? new Float32Array(ours.length);
    for (const [i, value] of ours.entries()) {
      apart += (value - (theirs[i] ?? 0)) ** 2;
      size += value ** 2;
    }
  }
  return Math.sqrt(apart / size);
}

test.each(cases.slice(1).map(({ name }, i) => [name, i + 1] as const))("%s trains as one rank does", (_, i) => {
  const [alone, got] = [outcomes[0], outcomes[i]];
  if (alone === null || alone === undefined || got === null || got === undefined) throw new Error("the case did not run");
  expect(alone.losses.at(-1)).toBeLessThan(alone.losses[0] ?? 0);
  for (const [step, loss] of got.losses.entries())
    expect(Math.abs(loss / (alone.losses[step] ?? 0) - 1), `step ${step + 1}`).toBeLessThan(0.01);
  expect([...got.weights.keys()].toSorted()).toEqual([...alone.weights.keys()].toSorted());
  expect(distance(got, alone)).toBeLessThan(0.05);
  expect(got.stateError).toEqual(got.stateError.map(() => 0));
  expect(got.leaked).toEqual([0]);
});
