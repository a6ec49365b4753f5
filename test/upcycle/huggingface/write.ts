/**
 * Writes what `check.py` reads: small random dense models, and what they become in every exact pair that transformers knows, with
 * the options that keep exactness.
 *
 *   node test/upcycle/huggingface/write.ts <folder> && python test/upcycle/huggingface/check.py <folder>
 */
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { loadBackend } from "../../../src/backend/load.ts";
import { Engine } from "../../../src/tensor/index.ts";
import { upcycle, upcyclePairs, type UpcycleOptions } from "../../../src/upcycle/index.ts";
import { writeFileAtomically } from "../../../src/util/files.ts";
import { configOfSource, probeIds, writeDense } from "../fixtures.ts";

const folder = process.argv[2];
if (folder === undefined) throw new Error("expected a folder to write to");
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
using engine = new Engine(await loadBackend({ numThreads: 1 }));
const variants: Readonly<Record<string, Partial<UpcycleOptions>>> = {
  plain: {},
  shards: { granularity: 2, numExperts: 8, topK: 4 },
  shared: { sharedExpert: { share: 0.5 } },
  sparse: { layerInterval: 2 },
};
const cases: { dense: string; moe: string }[] = [];
for (const { source, target, verdict } of upcyclePairs) {
  // Skywork has no implementation in transformers.
  if (verdict !== "exact" || target === "skywork_moe" || source === "skywork") continue;
  for (const [name, options] of Object.entries(variants)) {
    if (name === "shared" && target !== "qwen2_moe") continue;
    if (name === "sparse" && target === "mixtral") continue;
    const [dense, moe] = [`${source} dense`, `${source} to ${target} ${name}`].map((path) => path.replaceAll(" ", "-")) as [string, string];
    writeDense(engine, configOfSource(source), "f32", join(folder, dense));
    upcycle(join(folder, dense), join(folder, moe), { numExperts: 4, topK: 2, target, ...options });
    cases.push({ dense, moe });
  }
}
// OLMoE's one exact source.
writeDense(engine, { ...configOfSource("qwen3"), numHeads: 1, numKvHeads: 1, headDim: 32 }, "f32", join(folder, "one-head"));
upcycle(join(folder, "one-head"), join(folder, "one-head-to-olmoe"), { numExperts: 4, topK: 2, target: "olmoe" });
cases.push({ dense: "one-head", moe: "one-head-to-olmoe" });
writeFileAtomically(join(folder, "cases.json"), JSON.stringify({ ids: probeIds, cases }));
