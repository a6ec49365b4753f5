/** Runs of the lab of expert strategies: EDP, EP, ETP and TP on the same model and ranks. */
import { join } from "node:path";
import type { LayoutInput } from "../../../src/config/layout.ts";
import { TokenFileWriter } from "../../../src/data/index.ts";
import { startRanks } from "../../../src/parallel/index.ts";
import { Random } from "../../../src/util/random.ts";
import { sizes, type LabResult, type LabRun } from "./job.ts";

/** Four ranks. */
export const strategies: readonly { readonly name: string; readonly layout: LayoutInput }[] = [
  { name: "EDP", layout: { dp: 2, tp: 2, strategy: "EDP" } },
  { name: "TP", layout: { dp: 2, tp: 2, strategy: "TP" } },
  { name: "EP", layout: { dp: 2, tp: 2, strategy: "EP" } },
  { name: "ETP", layout: { dp: 2, tp: 2, strategy: "ETP" } },
  { name: "EDP, sequence parallelism", layout: { dp: 2, tp: 2, strategy: "EDP", sequenceParallel: true } },
  { name: "TP, sequence parallelism", layout: { dp: 2, tp: 2, strategy: "TP", sequenceParallel: true } },
  { name: "EP, sequence parallelism", layout: { dp: 2, tp: 2, strategy: "EP", sequenceParallel: true } },
  { name: "ETP, sequence parallelism", layout: { dp: 2, tp: 2, strategy: "ETP", sequenceParallel: true } },
  { name: "EP without tensor parallelism", layout: { dp: 4, strategy: "EP" } },
];

/** Random ids: what is learned does not matter here. */
export function writeTokens(folder: string): void {
  const random = new Random(1);
  const { vocabSize } = sizes.small.model;
  using writer = new TokenFileWriter(join(folder, "lab.tokens"), { vocabSize });
  for (let document = 0; document < 64; document++)
    writer.append(
      Int32Array.from({ length: 400 }, () => random.integer(vocabSize)),
      new Uint8Array(400).fill(1),
    );
  writer.finish("lab");
}

/** On threads of this process, one a rank. */
export async function runLab(folder: string, runs: readonly LabRun[], size = 4): Promise<LabResult[]> {
  const entry = new URL("./rank.ts", import.meta.url);
  const ranks = await startRanks({ size, entry, data: { folder, runs }, backend: { numThreads: 1 }, timeoutMs: 600_000 }).results;
  return (ranks[0] as (LabResult | null)[]).flatMap((result) => result ?? []);
}
