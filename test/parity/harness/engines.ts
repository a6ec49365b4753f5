/**
 * The engines under test: the native library once for every instruction set, WebAssembly with and without threads, and the reference
 * itself (as a check of the suite). What this machine cannot run is listed with the reason, so that a skip is seen.
 *
 * MOE_ENGINE and MOE_ISA narrow the list; MOE_NATIVE_LIBRARY names another build of the library.
 */
import type { Backend, BackendName } from "../../../src/backend/backend.ts";
import type { NativeIsa } from "../../../src/backend/environment.ts";
import { nativeIsas } from "../../../src/backend/environment.ts";
import { chooseEngine } from "../../../src/backend/load.ts";
import { MoeError } from "../../../src/util/errors.ts";

export interface Engine {
  readonly title: string;
  readonly name: BackendName;
  /** Why it cannot run here, or null. */
  readonly skip: string | null;
  /** Whether it can use more than one thread. */
  readonly threaded: boolean;
  open(numThreads: number): Promise<Backend>;
}

interface Candidate {
  readonly title: string;
  readonly name: BackendName;
  readonly isa?: NativeIsa;
  readonly threaded: boolean;
}

const candidates: readonly Candidate[] = [
  ...nativeIsas.map((isa) => ({ title: `native ${isa}`, name: "native" as const, isa, threaded: true })),
  { title: "wasm with threads", name: "wasm", threaded: true },
  { title: "wasm with one thread", name: "wasm", threaded: false },
  { title: "reference", name: "reference", threaded: false },
];

async function open({ name, isa, threaded }: Candidate, numThreads: number): Promise<Backend> {
  const library = process.env["MOE_NATIVE_LIBRARY"];
  const options = { engine: name, numThreads: threaded ? numThreads : 1, ...(isa === undefined ? {} : { isa }) };
  const { backend } = await chooseEngine(options, library === undefined ? {} : { MOE_NATIVE_LIBRARY: library });
  return backend;
}

/** Null where the engine starts. Only what the machine lacks is a reason; other errors are for the tests to throw. */
async function reasonToSkip(candidate: Candidate): Promise<string | null> {
  const { MOE_ENGINE: engine, MOE_ISA: isa } = process.env;
  if (engine && engine !== candidate.name) return `MOE_ENGINE is ${engine}`;
  if (isa && isa !== candidate.isa) return `MOE_ISA is ${isa}`;
  try {
    (await open(candidate, 1)).dispose();
    return null;
  } catch (error) {
    const isLack = error instanceof MoeError && (error.kind === "resource" || error.kind === "usage");
    return isLack ? error.message : null;
  }
}

export async function listEngines(): Promise<Engine[]> {
  const engines: Engine[] = [];
  for (const candidate of candidates) {
    const { title, name, threaded } = candidate;
    engines.push({ title, name, threaded, skip: await reasonToSkip(candidate), open: (numThreads) => open(candidate, numThreads) });
  }
  return engines;
}
