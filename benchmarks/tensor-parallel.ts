/**
 * Row `tp.memory`: weights and keys and values of all ranks together, uneven against every count padded to a multiple of the ranks. Ours
 * is measured in the backends of ranks that loaded the model; padding is arithmetic (`paddedMemory`), because nothing here pads. The bar is
 * what the plan said: the share of padding's bytes that uneven shares need.
 *
 * The model has SmolLM2-135M's widths and 8 experts a layer, in fewer layers: every layer is cut alike, and the table of words weighs more
 * so than in the whole model.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadBackend } from "../src/backend/load.ts";
import { modelPresets } from "../src/config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../src/config/model.ts";
import { Decoder, saveModel } from "../src/model/index.ts";
import { startRanks, tensorParallelPlan } from "../src/parallel/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { wanted, type Context } from "./context.ts";
import type { Row } from "./measure.ts";
import type { MemoryJob } from "./tensor-parallel-rank.ts";

const cacheTokens = 2048;
const smollm = modelPresets["smollm2-135m"];
const config: ModelConfig = {
  ...smollm,
  architecture: "mixtral",
  numLayers: 3,
  moe: { ...plainRouting, numExperts: 8, topK: 2, expertFfnSize: smollm.ffnSize },
};

export const tensorParallelNames = ["tp.memory.5", "tp.memory.7"] as const;

export async function* tensorParallelRows(context: Context): AsyncGenerator<Row> {
  const names = wanted(context, tensorParallelNames);
  if (names.length === 0) return;
  const folder = mkdtempSync(join(tmpdir(), "moe-tp-"));
  try {
    {
      using engine = new Engine(await loadBackend());
      using model = Decoder.initialize(engine, config, { dtype: "bf16", seed: 1 });
      saveModel(model, folder);
    }
    for (const name of names) yield await memoryRow(name, folder, Number(name.slice("tp.memory.".length)));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function memoryRow(name: string, path: string, ranks: number): Promise<Row> {
  const plan = tensorParallelPlan(config, { ranks, cacheTokens, format: { weights: "bf16" } });
  const job: MemoryJob = { path, cacheTokens, shares: plan.ranks.map(({ share }) => share) };
  const entry = new URL("./tensor-parallel-rank.ts", import.meta.url);
  const held = (await startRanks({ size: ranks, entry, data: job }).results) as number[];
  const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);
  const padded = ranks * (plan.padded.weightBytes + cacheTokens * plan.padded.kvBytesPerToken);
  const planned = sum(plan.ranks.map(({ totalBytes }) => totalBytes));
  return {
    name,
    ours: [sum(held)],
    rival: [padded],
    unit: "bytes",
    bar: (planned / padded) * (1 + 1e-6),
    note: `${plan.mode}; planned ${planned} bytes; rival: every count padded to a multiple of ${ranks}`,
  };
}
