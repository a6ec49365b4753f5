/**
 * The environment variables that choose an engine, read in one place:
 *
 * - `MOE_ENGINE`: `native`, `wasm` or `reference`; without it the best that works
 * - `MOE_ISA`: instruction set of the native kernels, `avx2`, `avx512`, `avx512bf16`, `amx` or `neon`; without it the fastest here
 * - `MOE_THREADS`: threads of one backend, 1 to 256; without it as many as the machine runs at once
 * - `MOE_NATIVE_LIBRARY`: path of the native library, instead of the one in the package (a sanitizer build)
 *
 * An empty variable counts as absent. A value that is none of these is an error, not a reason for a default.
 */
import { availableParallelism } from "node:os";
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import type { BackendName } from "./backend.ts";

export const engines = ["native", "wasm", "reference"] as const satisfies readonly BackendName[];
export const nativeIsas = ["avx2", "avx512", "avx512bf16", "amx", "neon"] as const;
export type NativeIsa = (typeof nativeIsas)[number];
export const maxThreads = 256;

/** What a caller may ask of `loadBackend`; each field overrides its environment variable. */
export interface BackendOptions {
  readonly engine?: BackendName;
  readonly isa?: NativeIsa;
  readonly numThreads?: number;
}

/** Options and environment together. An undefined field is free to choose. */
export interface BackendRequest {
  readonly engine: BackendName | undefined;
  readonly isa: NativeIsa | undefined;
  readonly numThreads: number;
  readonly nativeLibrary: string | undefined;
}

function oneOf<T extends string>(what: string, value: string, known: readonly T[]): T {
  const found = known.find((name) => name === value);
  if (found === undefined) throw new MoeError("usage", `${what}: expected ${known.join(", ")}, got "${value}"${didYouMean(value, known)}`);
  return found;
}

function threadCount(what: string, value: string | number): number {
  const count = typeof value === "number" ? value : /^\d+$/.test(value) ? Number(value) : Number.NaN;
  if (!Number.isInteger(count) || count < 1 || count > maxThreads) {
    throw new MoeError("usage", `${what}: expected a number of threads from 1 to ${maxThreads}, got "${value}"`);
  }
  return count;
}

/** Reads `options` and, for what they leave open, `env`. Throws `usage` for an unknown value, naming the known ones. */
export function resolveRequest(options: BackendOptions = {}, env: NodeJS.ProcessEnv = process.env): BackendRequest {
  const engine = options.engine ?? env["MOE_ENGINE"];
  const isa = options.isa ?? env["MOE_ISA"];
  const threads = options.numThreads ?? (env["MOE_THREADS"] || undefined);
  const request = {
    engine: engine ? oneOf(options.engine === undefined ? "MOE_ENGINE" : "engine", engine, engines) : undefined,
    isa: isa ? oneOf(options.isa === undefined ? "MOE_ISA" : "isa", isa, nativeIsas) : undefined,
    numThreads:
      threads === undefined
        ? Math.min(availableParallelism(), maxThreads)
        : threadCount(options.numThreads === undefined ? "MOE_THREADS" : "numThreads", threads),
    nativeLibrary: env["MOE_NATIVE_LIBRARY"] || undefined,
  };
  if (request.isa !== undefined && request.engine !== undefined && request.engine !== "native") {
    throw new MoeError(
      "usage",
      `MOE_ISA chooses among native kernels: expected engine native with ${request.isa}, got engine ${request.engine}`,
    );
  }
  return request;
}
