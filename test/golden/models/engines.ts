/** Every engine that starts on this machine, for tests that run on all of them. */
import type { BackendName } from "../../../src/backend/backend.ts";
import { loadBackend } from "../../../src/backend/load.ts";
import { Engine } from "../../../src/tensor/index.ts";

export const backendNames: readonly BackendName[] = ["native", "wasm", "reference"];

export interface StartedEngines {
  readonly engines: ReadonlyMap<BackendName, Engine>;
  /** Why an engine did not start: tests skip it. */
  readonly missing: ReadonlyMap<BackendName, string>;
}

export async function startEngines(): Promise<StartedEngines> {
  const engines = new Map<BackendName, Engine>();
  const missing = new Map<BackendName, string>();
  for (const name of backendNames) {
    try {
      engines.set(name, new Engine(await loadBackend({ engine: name })));
    } catch (error) {
      missing.set(name, String(error));
    }
  }
  return { engines, missing };
}
