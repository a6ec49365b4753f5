/**
 * Choosing an engine: native, else WebAssembly with threads, else WebAssembly with one, else the reference; and for every better one
 * that is not used, the reason, which `moe doctor` prints. A forced engine (see `environment.ts`) is used or the reason is thrown.
 *
 * Engines are imported when they are tried: a program that runs natively never loads the others.
 */
import { MoeError } from "../util/errors.ts";
import type { Backend, BackendName } from "./backend.ts";
import type { BackendOptions, BackendRequest } from "./environment.ts";
import { engines, resolveRequest } from "./environment.ts";

export type { BackendOptions } from "./environment.ts";

/** A better engine that was not taken. */
export interface PassedOver {
  readonly engine: string;
  readonly reason: string;
}

/** A backend with the history of its choice. */
export interface EngineChoice {
  readonly backend: Backend;
  readonly forced: boolean;
  readonly passedOver: readonly PassedOver[];
}

async function createNative(request: BackendRequest): Promise<Backend> {
  const [{ loadNativeLibrary }, { NativeBackend }] = await Promise.all([import("./native/library.ts"), import("./native/backend.ts")]);
  const library = await loadNativeLibrary(request.nativeLibrary);
  const isa = request.isa ?? library.defaultIsa;
  if (!library.isas.includes(isa)) {
    throw new MoeError("usage", `MOE_ISA: expected a set that this machine can run (${library.isas.join(", ")}), got ${isa}`);
  }
  return new NativeBackend(library, isa, request.numThreads);
}

/** With one thread where more do not start, which is then reported like an engine passed over. */
async function createWasm(request: BackendRequest, passedOver: PassedOver[]): Promise<Backend> {
  const [{ createWasmBackend }, { nodeHost }] = await Promise.all([import("./wasm/backend.ts"), import("./wasm/host-node.ts")]);
  const backend = await createWasmBackend(nodeHost, request.numThreads);
  if (backend.threadsReason !== undefined)
    passedOver.push({ engine: `wasm with ${request.numThreads} threads`, reason: backend.threadsReason });
  return backend;
}

async function createReference(): Promise<Backend> {
  const { createReferenceBackend } = await import("./reference/index.ts");
  return createReferenceBackend();
}

async function create(engine: BackendName, request: BackendRequest, passedOver: PassedOver[]): Promise<Backend> {
  if (engine === "native") return createNative(request);
  if (engine === "wasm") return createWasm(request, passedOver);
  engine satisfies "reference";
  return createReference();
}

/** Chooses, loads and starts an engine. Throws `usage` for unknown or impossible requests, `resource` where a forced engine does not start. */
export async function chooseEngine(options: BackendOptions = {}, env: NodeJS.ProcessEnv = process.env): Promise<EngineChoice> {
  const request = resolveRequest(options, env);
  const forced = request.engine ?? (request.isa === undefined ? undefined : "native");
  const passedOver: PassedOver[] = [];
  if (forced !== undefined) return { backend: await create(forced, request, passedOver), forced: true, passedOver };
  for (const engine of engines) {
    try {
      return { backend: await create(engine, request, passedOver), forced: false, passedOver };
    } catch (error) {
      // What the machine lacks is a reason to take the next engine; a broken build is not.
      if (!(error instanceof MoeError) || error.kind !== "resource") throw error;
      passedOver.push({ engine, reason: error.message });
    }
  }
  throw new MoeError("resource", `no engine starts: ${passedOver.map(({ engine, reason }) => `${engine}: ${reason}`).join("; ")}`);
}

/**
 * The backend to compute with, as options and environment ask.
 * @example
 * const backend = await loadBackend();
 * const x = backend.alloc(8);
 * backend.write(x, Float32Array.of(1, 2));
 * backend.kernels.scale(x, x, 2, 10, 0); // x is now 10, 20
 * backend.free(x);
 * backend.dispose();
 */
export async function loadBackend(options: BackendOptions = {}): Promise<Backend> {
  return (await chooseEngine(options)).backend;
}

/** One line: the engine, its instruction set and threads, and why nothing better. */
export function describeEngine({ backend, forced, passedOver }: EngineChoice): string {
  const threads = `${backend.numThreads} ${backend.numThreads === 1 ? "thread" : "threads"}`;
  const why = forced
    ? "as asked for"
    : passedOver.length === 0
      ? "the best there is"
      : passedOver.map(({ engine, reason }) => `not ${engine}: ${reason}`).join("; ");
  return `${backend.name} (${backend.isa}, ${threads}): ${why}`;
}
