/**
 * Which files the library is made of and which instruction sets it is compiled for: shared by the native and the WebAssembly
 * build. Plain JavaScript for any Node from 20 on, because installing the package runs it.
 */
import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const nativeDir = dirname(fileURLToPath(import.meta.url));
export const rootDir = dirname(nativeDir);

/** Compiled once. Every other native/*.c is a kernel file, compiled once per instruction set. */
export const runtimeFiles = ["context.c", "memory.c"];
/** Of the native library alone: files, copies, CPUID; communicators between threads. */
export const nativeOnlyFiles = ["system.c", "ranks/shared.c", "ranks/shared_world.c"];

/** A library of its own, where there is an MPI to link it with: communicators between processes. */
export const mpiFiles = ["ranks/mpi.c", "ranks/mpi_transfers.c", "ranks/mpi_world.c", "ranks/pulse.c"];

/** @returns {string[]} names of the kernel files, sorted */
export function kernelFiles() {
  const others = new Set([...runtimeFiles, ...nativeOnlyFiles]);
  return readdirSync(nativeDir)
    .filter((name) => name.endsWith(".c") && !others.has(name))
    .sort();
}

/** -ffp-contract=off: a fused multiply-add is written where it is meant. -fno-math-errno lets sqrtf be an instruction. */
export const commonFlags = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra"];

const avx2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"];
const avx512 = [...avx2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"];

/** Flags of each instruction set, by processor architecture (Node's names), the most capable last. */
export const instructionSets = {
  x64: { avx2, avx512, avx512bf16: [...avx512, "-mavx512bf16"], amx: [...avx512, "-mamx-tile", "-mamx-bf16"] },
  arm64: { neon: [] },
};

/** @param {import("node:crypto").BinaryLike} data */
export function sha256(data) {
  return createHash("sha256").update(data).digest("hex");
}

/** @param {string} path */
export function hashFile(path) {
  return sha256(readFileSync(path));
}

/** Every source and header, by path relative to native/: what an artifact depends on. */
export function sourceHashes(extraDirs = []) {
  const names = readdirSync(nativeDir).filter((name) => /\.[ch]$/.test(name) && !nativeOnlyFiles.includes(name));
  for (const dir of extraDirs)
    names.push(
      ...readdirSync(join(nativeDir, dir), { recursive: true })
        .map((name) => join(dir, String(name)))
        .filter((name) => /\.[ch]$/.test(name)),
    );
  return Object.fromEntries(names.sort().map((name) => [name, hashFile(join(nativeDir, name))]));
}
