/** Whole runs over ranks: what they write, that they go on bit for bit, and that their checkpoints know no layout. */
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import type { LayoutInput } from "../../src/config/layout.ts";
import { parseRunConfig, type RunConfig } from "../../src/config/run.ts";
import { loadModel, type Decoder } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { train, trainOnRanks } from "../../src/train/index.ts";
import { tinyRun } from "../train/harness.ts";

const folder = mkdtempSync(join(tmpdir(), "moe-train-ranks-"));
const everything: LayoutInput = { dp: 2, tp: 2, zero: 1, sequenceParallel: true };
const backend = { numThreads: 1 };
const patience = 120_000;
const engine = new Engine(await loadBackend(backend));

function configOf(layout: LayoutInput): RunConfig {
  const input = tinyRun(join(folder, "data"), "skywork", {
    batchSequences: 8,
    microBatchSequences: 2,
    checkpoint: { intervalSteps: 3, keep: 5 },
    moe: {
      balanceGroupSequences: 1,
      capacityFactor: 1.1,
      jitterEpsilon: 0.01,
      biasUpdateRate: 1e-3,
      auxiliaryLossCoefficient: { type: "adaptive" },
    },
    layout,
  });
  return parseRunConfig({ ...input, data: { ...input.data, validation: { held: input.data.train } }, evaluation: { maxSequences: 7 } });
}
const runs = (name: string): string => join(folder, name);
const weightsOf = (name: string, step: number): Buffer[] =>
  ["model.safetensors", "optimizer.safetensors", "state.json"].map((file) =>
    readFileSync(join(runs(name), "checkpoints", `step-${String(step).padStart(8, "0")}`, file)),
  );
function recordsOf(name: string): Record<string, unknown>[] {
  return readFileSync(join(runs(name), "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}
/** A run that was stopped after step 3. */
function stoppedRun(from: string, name: string): void {
  cpSync(runs(from), runs(name), { recursive: true });
  rmSync(join(runs(name), "checkpoints", "step-00000006"), { recursive: true });
}

beforeAll(async () => {
  await train({ engine, config: configOf({}), runFolder: runs("one") });
  await trainOnRanks({ config: configOf(everything), runFolder: runs("many"), backend });
}, patience);
afterAll(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

test("metrics are those of one rank, with the traffic of each axis beside them", () => {
  const [one, many] = [recordsOf("one"), recordsOf("many")];
  expect(many.map(({ type, step }) => [type, step])).toEqual(one.map(({ type, step }) => [type, step]));
  for (const [i, record] of many.entries()) {
    const { traffic, ...rest } = record;
    expect(Object.keys(rest)).toEqual(Object.keys(one[i] ?? {}));
    const [loss, expected] = [Number(record["loss"]), Number(one[i]?.["loss"])];
    expect(Math.abs(loss / expected - 1)).toBeLessThan(1e-5);
    if (record["type"] !== "step") continue;
    const perAxis = traffic as Record<string, { bytes: number }>;
    expect(Object.keys(perAxis).toSorted()).toEqual(["block", "dp", "edp", "stage", "tp"]);
    for (const axis of ["tp", "dp", "block", "edp"]) expect(perAxis[axis]?.bytes, axis).toBeGreaterThan(0);
  }
});
test(
  "a run that was stopped goes on under its layout with the same bits",
  async () => {
    stoppedRun("many", "again");
    await trainOnRanks({ config: configOf(everything), runFolder: runs("again"), resume: true, backend });
    const [weights, optimizer] = weightsOf("again", 6);
    expect(weights?.equals(weightsOf("many", 6)[0] ?? Buffer.of())).toBe(true);
    expect(optimizer?.equals(weightsOf("many", 6)[1] ?? Buffer.of())).toBe(true);
  },
  patience,
);
test.each<readonly [string, LayoutInput]>([
  ["one rank", {}],
  ["other axes", { pp: 2, dp: 2, strategy: "EP" }],
])(
  "a checkpoint of many ranks goes on under %s to the same losses",
  async (name, layout) => {
    stoppedRun("many", name);
    const options = { config: configOf(layout), runFolder: runs(name), resume: true };
    await (layout.dp === undefined ? train({ engine, ...options }) : trainOnRanks({ ...options, backend }));
    const losses = (of: string): number[] => recordsOf(of).flatMap(({ type, loss }) => (type === "step" ? [Number(loss)] : []));
    for (const [step, loss] of losses(name).entries()) expect(Math.abs(loss / (losses("many")[step] ?? NaN) - 1)).toBeLessThan(1e-5);
  },
  patience,
);
test("a checkpoint of many ranks is one model, near that of one rank", () => {
  const load = (name: string): Decoder =>
    loadModel(engine, join(runs(name), "checkpoints", "step-00000006"), { dtype: "f32", mapped: false });
  using one = load("one");
  using many = load("many");
  for (const [name, tensor] of one.parameters) {
    const [expected, got] = [tensor.toFloat32Array(), many.parameters.get(name)?.toFloat32Array()];
    const distance = Math.hypot(...expected.map((value, i) => value - (got?.[i] ?? NaN))) / Math.max(1e-9, Math.hypot(...expected));
    expect(distance, name).toBeLessThan(1e-4);
  }
});
test("what cannot be measured over these ranks is refused with what to do", async () => {
  const config = configOf({ tp: 2 });
  const measuring = { ...config, moe: { ...config.moe, similarityInterval: 2 } };
  await expect(trainOnRanks({ config: measuring, runFolder: runs("similar"), backend })).rejects.toThrow(
    /moe.similarityInterval with experts over ep 2 \* etp 1 ranks: no rank has all of them; set it to 0/,
  );
});
