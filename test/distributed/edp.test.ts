/** Bytes of every expert strategy are those of the closed forms, to the byte. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { stepBytes } from "../../recipes/lab/edp/formulas.ts";
import { runOf, sizes } from "../../recipes/lab/edp/job.ts";
import { runLab, strategies, writeTokens } from "../../recipes/lab/edp/lab.ts";
import { layoutOf } from "../../src/config/run.ts";

const folder = mkdtempSync(join(tmpdir(), "moe-edp-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("operands of all collectives of a step are what the formulas say, for every strategy, with and without sequence parallelism", async () => {
  writeTokens(folder);
  const runs = strategies.map((one) => ({ ...one, size: "tiny" as const, numSteps: 2, link: null }));
  const { model, sequenceLength } = sizes.tiny;
  const results = await runLab(folder, runs);
  expect(results).toHaveLength(strategies.length);
  for (const [i, { name, bytes, losses }] of results.entries()) {
    const config = runOf(runs[i] ?? { layout: {}, numSteps: 1, size: "tiny" });
    const layout = layoutOf(config);
    const shape = {
      numTokens: config.microBatchSequences * sequenceLength,
      numMicroBatches: config.batchSequences / layout.dp / config.microBatchSequences,
    };
    const expected = stepBytes(model, layout, shape);
    for (const axis of ["tp", "dp", "edp", "block"] as const) expect(bytes[axis] ?? 0, `${name}, ${axis}`).toBe(expected[axis]);
    for (const [step, loss] of losses.entries()) expect(Math.abs(loss / (results[0]?.losses[step] ?? NaN) - 1)).toBeLessThan(1e-5);
  }
}, 180_000);
