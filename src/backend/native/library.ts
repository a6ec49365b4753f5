/**
 * The native library as JavaScript functions: where it lies, building it on first use, and declaring what `native/*.c` exports.
 *
 * Addresses cross as plain numbers: koffi takes a double for a 64-bit integer and gives one back while it is exact, and user
 * addresses are below 2^47 (2^56 with five-level paging only if asked for). A call costs about 80 ns.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { MoeError } from "../../util/errors.ts";
import type { Kernels } from "../kernels.ts";
import type { NativeIsa } from "../environment.ts";
import { nativeIsas } from "../environment.ts";
import { bindKernels } from "../symbols.ts";

/** What the runtime part of the library exports (native/context.c, memory.c, system.c). A context is an address. */
export interface NativeRuntime {
  contextCreate(numThreads: number): number;
  contextDestroy(context: number): void;
  contextThreads(context: number): number;
  alloc(context: number, byteLength: number): number;
  free(context: number, ptr: number): number;
  liveBytes(context: number): number;
  peakBytes(context: number): number;
  mappedBytes(context: number): number;
  resetPeak(context: number): void;
  trim(context: number): void;
  copyIn(target: number, source: ArrayBufferView, byteLength: number): void;
  copyOut(target: ArrayBufferView, source: number, byteLength: number): void;
  mapFile(path: string, address: BigUint64Array, size: BigUint64Array): number;
  unmapFile(address: number, byteLength: number): number;
  errorText(error: number): string;
  cpuFeatures(): number;
  emptyParallelFor(context: number, numChunks: number, times: number): void;
}

/** A library that is loaded. */
export interface NativeLibrary {
  readonly path: string;
  readonly runtime: NativeRuntime;
  /** Sets that the library has and this processor can run, the least capable first. */
  readonly isas: readonly NativeIsa[];
  /** The set to take unless somebody asks for another. */
  readonly defaultIsa: NativeIsa;
  bindKernels(isa: NativeIsa, context: number): Kernels;
  /** A function of the library that is no kernel, by its C name and koffi's names of types. Throws `internal` where there is none. */
  readonly bind: (symbol: string, result: string, args: readonly string[]) => (...args: never[]) => unknown;
  /** The bytes at an address, not a copy. */
  view(ptr: number, byteLength: number): Uint8Array<ArrayBuffer>;
}

const runtimeTypes = {
  contextCreate: ["uintptr_t", "int"],
  contextDestroy: ["void", "uintptr_t"],
  contextThreads: ["int", "uintptr_t"],
  alloc: ["uintptr_t", "uintptr_t", "size_t"],
  free: ["int", "uintptr_t", "uintptr_t"],
  liveBytes: ["double", "uintptr_t"],
  peakBytes: ["double", "uintptr_t"],
  mappedBytes: ["double", "uintptr_t"],
  resetPeak: ["void", "uintptr_t"],
  trim: ["void", "uintptr_t"],
  copyIn: ["void", "uintptr_t", "void *", "size_t"],
  copyOut: ["void", "void *", "uintptr_t", "size_t"],
  mapFile: ["int", "str", "void *", "void *"],
  unmapFile: ["int", "uintptr_t", "size_t"],
  errorText: ["str", "int"],
  cpuFeatures: ["int"],
  emptyParallelFor: ["void", "uintptr_t", "int64_t", "int64_t"],
} as const satisfies Record<keyof NativeRuntime, readonly [string, ...string[]]>;

const argumentTypes: Readonly<Record<string, string>> = { p: "uintptr_t", n: "int64_t", i: "int", f: "float" };

/** Bits of moe_cpu_features (native/system.c). */
const featureBits: Readonly<Record<NativeIsa, number>> = { avx2: 1, avx512: 2, avx512bf16: 4, amx: 32, neon: 8 };
const fastBf16Bit = 16;

function packagePath(path: string): string {
  return fileURLToPath(new URL(`../../../${path}`, import.meta.url));
}

/** Where the build puts the library of this machine. */
export function nativeLibraryPath(): string {
  return packagePath(`build/native/${process.platform}-${process.arch}/libmoe.${process.platform === "darwin" ? "dylib" : "so"}`);
}

/** Where the build puts the library that speaks MPI, or `MOE_MPI_LIBRARY`. */
export function mpiLibraryPath(env: NodeJS.ProcessEnv = process.env): string {
  const name = `build/native/${process.platform}-${process.arch}/libmoempi.${process.platform === "darwin" ? "dylib" : "so"}`;
  return env["MOE_MPI_LIBRARY"] || packagePath(name);
}

/** Whether a C compiler may be had now: a look at the PATH, without starting anything. */
function hasCompiler(): boolean {
  const directories = (process.env["PATH"] ?? "").split(delimiter);
  return (
    Boolean(process.env["CC"]) || directories.some((directory) => ["cc", "gcc", "clang"].some((name) => existsSync(join(directory, name))))
  );
}

/** Remembers a failure, so that not every start tries again; in a read-only place it is tried again. */
function remember(log: string, reason: string): void {
  try {
    mkdirSync(dirname(log), { recursive: true });
    writeFileSync(log, `${reason}\n`);
  } catch {
    return;
  }
}

/**
 * Builds the library when it is missing: an installed package brings sources. A failure is written to build/native/failed.txt (by
 * scripts/prepare.mjs too) and reported from there the next time; it is tried again when a compiler appears, or by hand.
 */
function buildOnFirstUse(path: string): void {
  if (existsSync(path)) return;
  const script = packagePath("native/build.mjs");
  const refuse = (reason: string): MoeError =>
    new MoeError("resource", `the native library was not built: ${reason.trim()} (to try again: node ${script})`);
  if (!existsSync(script)) throw new MoeError("resource", `the native library is not in this package, nor are its sources (${script})`);
  if (!hasCompiler()) throw refuse("no C compiler found");
  const log = packagePath("build/native/failed.txt");
  const before = existsSync(log) ? readFileSync(log, "utf8") : "no C compiler found";
  if (!before.includes("no C compiler found")) throw refuse(before);
  process.stderr.write("moe: building the native library for this machine, once\n");
  const result = spawnSync(process.execPath, [script, "--quiet"], { encoding: "utf8", env: { ...process.env, NODE_OPTIONS: "" } });
  if (result.status === 0) return;
  const reason = result.stderr || String(result.error);
  remember(log, reason);
  throw refuse(reason);
}

/** Turns `moe_context_create` and its like into methods. */
function snake(name: string): string {
  return `moe_${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`;
}

/**
 * Loads the library, building it first where it is missing. Throws `resource` where that cannot be done, with the
 * reason: no compiler, an architecture without a native set, a processor older than AVX2, no koffi.
 */
export async function loadNativeLibrary(override: string | undefined): Promise<NativeLibrary> {
  const path = override ?? nativeLibraryPath();
  if (override === undefined) buildOnFirstUse(path);
  const { default: koffi } = await import("koffi").catch((error: unknown) => {
    throw new MoeError("resource", `the npm package koffi, which calls the native library, does not load: ${String(error)}`, {
      cause: error,
    });
  });
  const library = (() => {
    try {
      return koffi.load(path);
    } catch (error) {
      throw new MoeError("resource", `${path} does not load: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
    }
  })();
  const find = (symbol: string, result: string, args: readonly string[]): ((...args: never[]) => unknown) | null => {
    try {
      return library.func(symbol, result, [...args]);
    } catch {
      return null;
    }
  };
  const functions = Object.entries(runtimeTypes).map(([name, [result, ...args]]) => [name, find(snake(name), result, args)] as const);
  const missing = functions.filter(([, f]) => f === null).map(([name]) => snake(name));
  if (missing.length > 0)
    throw new MoeError("internal", `${path}: expected the runtime of this version, got none of ${missing.join(", ")}; rebuild it`);
  const runtime = Object.fromEntries(functions) as unknown as NativeRuntime;
  const features = runtime.cpuFeatures();
  const isas = nativeIsas.filter((isa) => features & featureBits[isa] && find(`moe_isa_${isa}`, "int", []) !== null);
  const best = isas.at(-1);
  if (best === undefined)
    throw new MoeError("resource", `${path} has no kernels that this processor can run (it needs AVX2 with FMA and F16C, or NEON)`);
  // vdpbf16ps takes two passes on Intel: half the speed of widening to f32, measured.
  const defaultIsa = best === "avx512bf16" && !(features & fastBf16Bit) && isas.includes("avx512") ? "avx512" : best;
  return {
    path,
    runtime,
    isas,
    defaultIsa,
    bindKernels: (isa, context) =>
      bindKernels(path, isa, (symbol, signature) => {
        const args = ["uintptr_t", ...Array.from(signature, (code) => argumentTypes[code] ?? code)];
        const kernel = find(symbol, "void", args) as ((...args: number[]) => void) | null;
        return kernel === null ? null : kernel.bind(null, context);
      }),
    bind: (symbol, result, args) => {
      const found = find(symbol, result, args);
      if (found === null) throw new MoeError("internal", `${path}: expected ${symbol} of this version, got none; rebuild it`);
      return found;
    },
    view: (ptr, byteLength) => new Uint8Array(koffi.view(ptr, byteLength)),
  };
}
