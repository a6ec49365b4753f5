/** Whole runs of a model with experts: what they write, say, keep and resume. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import { parseRunConfig, type RunConfigInput } from "../config/run.ts";
import { Dataset } from "../data/index.ts";
import { Decoder } from "../model/index.ts";
import { Engine } from "../tensor/index.ts";
import { tinyModel, tinyRun, trainedBytes, unevenTokens } from "../../test/train/harness.ts";
import { listCheckpoints, readCheckpointState, train, Trainer, type TrainEvent, type TrainResult } from "./index.ts";

let folder = "";
let engine: Engine;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-train-"));
  engine = new Engine(await loadBackend({ numThreads: 1 }));
});
afterEach(() => {
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** Runs a configuration in `folder/name`. */
async function run(
  input: RunConfigInput,
  name = "run",
  resume = false,
  onEvent: (event: TrainEvent) => void = () => undefined,
): Promise<TrainResult> {
  return await train({ engine, config: parseRunConfig(input), runFolder: join(folder, name), resume, onEvent });
}
describe("a run of a model with experts", () => {
  const moeRun = (changes: Partial<RunConfigInput>): RunConfigInput => ({ ...tinyRun(folder, "skywork"), ...changes });
  const records = (name = "run"): Record<string, unknown>[] =>
    readFileSync(join(folder, name, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);

  test("writes every metric of every layer that the documentation defines, and no other", async () => {
    await run(moeRun({ numSteps: 2, moe: { similarityInterval: 2 } }));
    const documentation = readFileSync(join(import.meta.dirname, "../../docs/metrics.md"), "utf8");
    const table = (heading: string): string[] => {
      const section = documentation.split(/^#+ /m).find((text) => text.startsWith(heading)) ?? "";
      return [...section.matchAll(/^\| (`.*?`) \|/gm)].flatMap(([, cell = ""]) =>
        [...cell.matchAll(/`(\w+)`/g)].map(([, key]) => key ?? ""),
      );
    };
    const [before, first, second, after] = records();
    expect([before, first, second, after].map((record) => [record?.["type"], record?.["step"]])).toEqual([
      ["similarity", 0],
      ["step", 1],
      ["step", 2],
      ["similarity", 2],
    ]);
    expect(Object.keys(second ?? {}).sort()).toEqual(["type", ...table("`step`")].sort());
    const layers = second?.["layers"] as Record<string, unknown>[];
    expect(layers).toHaveLength(2);
    for (const layer of layers) expect(Object.keys(layer).sort()).toEqual(table("`layers[]`").sort());
    const similar = after?.["layers"] as Record<string, { matrix: number[][] }>[];
    expect(similar).toHaveLength(2);
    for (const { gates } of similar as unknown as { gates: number[] }[]) {
      expect(gates).toEqual(gates.toSorted((a, b) => b - a));
      expect(gates.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 5);
      expect(gates).toHaveLength(4);
    }
    for (const { layer, weights, outputs } of similar)
      expect([typeof layer, weights?.matrix.length, outputs?.matrix.flat().length]).toEqual(["number", 4, 16]);
  });
  test("names forced balance wherever it shows a result", async () => {
    const text = join(folder, "text.txt");
    const events: TrainEvent[] = [];
    const input = moeRun({ numSteps: 2, moe: { forcedBalance: true, similarityInterval: 1 } });
    const result = await run({ ...input, data: { ...input.data, validation: { held: [{ path: text }] } } }, "run", false, (event) =>
      events.push(event),
    );
    expect(result.forcedBalance).toBe(true);
    expect(records().map(({ type }) => type)).toEqual(["similarity", "step", "similarity", "step", "similarity", "evaluation"]);
    for (const record of records()) expect(record["forcedBalance"]).toBe(true);
    expect(events.find(({ type }) => type === "start")).toMatchObject({ forcedBalance: true });
    expect(events).toContainEqual({ type: "warning", message: expect.stringMatching(/forcedBalance is on/) as string });
    const dense = await run({ ...tinyRun(folder, "dense", { numSteps: 1 }), moe: { forcedBalance: true } }, "dense");
    expect(dense.forcedBalance).toBe(false);
    expect(records("dense")[0]).not.toHaveProperty("forcedBalance");
  });
  test("goes on with coefficients and biases where it stopped, and without them from a checkpoint that has none", async () => {
    const moe = { auxiliaryLossCoefficient: { type: "adaptive", beta: 0.5 }, capacityFactor: 1.1, biasUpdateRate: 0.01 } as const;
    const whole = await run(moeRun({ moe, checkpoint: { intervalSteps: 3 } }));
    const expected = trainedBytes(whole.folder);
    const middle = readCheckpointState(listCheckpoints(join(folder, "run"))[0] ?? "");
    expect([middle.training.step, middle.coefficients?.length]).toEqual([3, 2]);
    rmSync(whole.folder, { recursive: true });
    const resumed = await run(moeRun({ moe, checkpoint: { intervalSteps: 3 } }), "run", true);
    expect(trainedBytes(resumed.folder)).toEqual(expected);
    await run(moeRun({ numSteps: 2 }), "fixed");
    const adaptive = await run(moeRun({ numSteps: 3, moe }), "fixed", true);
    expect(records("fixed").at(-1)?.["layers"]).toMatchObject([{ coefficient: 0.01 }, { coefficient: 0.01 }]);
    expect(readCheckpointState(adaptive.folder).coefficients).toHaveLength(2);
  });
  test("stops at a router that holds NaN, named, with the last checkpoint whole", () => {
    using file = unevenTokens(folder);
    using model = Decoder.initialize(engine, fromHuggingFaceConfig(tinyModel("skywork"), "test"), { dtype: "f32", seed: 1 });
    using trainer = new Trainer(
      parseRunConfig(moeRun({ moe: { capacityFactor: 1 } })),
      model,
      new Dataset(file, { sequenceLength: 32, seed: 1 }),
      {
        peakFlops: null,
      },
    );
    const router = model.parameters.get("layers.1.moe.router.weight");
    engine.backend.kernels.fillF32(router?.ptr ?? 0, 1, Number.NaN);
    expect(() => trainer.step()).toThrow(/step 1: the .* is NaN \(first in the weights of layers\.1\.moe\.router\.weight\)/);
    expect([trainer.state.step, trainer.coefficients.values]).toEqual([0, [0.01, 0.01]]);
  });
});
