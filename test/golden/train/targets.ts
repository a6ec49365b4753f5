/** What training curves are recorded for: each native instruction set, and WebAssembly. (The reference is too slow to train.) */
import { loadBackend } from "../../../src/backend/load.ts";
import { Engine } from "../../../src/tensor/index.ts";

export const targets = ["avx2", "avx512", "avx512bf16", "neon", "wasm"] as const;
export type Target = (typeof targets)[number];

export interface StartedTargets {
  readonly engines: ReadonlyMap<Target, Engine>;
  /** Why a target did not start: tests skip it. */
  readonly missing: ReadonlyMap<Target, string>;
}

export async function startTargets(): Promise<StartedTargets> {
  const engines = new Map<Target, Engine>();
  const missing = new Map<Target, string>();
  for (const target of targets) {
    try {
      const backend = await loadBackend(target === "wasm" ? { engine: target, numThreads: 2 } : { engine: "native", isa: target, numThreads: 2 });
      engines.set(target, new Engine(backend));
    } catch (error) {
      missing.set(target, String(error));
    }
  }
  return { engines, missing };
}
