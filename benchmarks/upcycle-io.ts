/**
 * Writing speed and memory of upcycling, against a plain sequential write with fsync of as many bytes on the same disk in the same run.
 *
 *   node benchmarks/upcycle-io.ts <dense> <folder> [experts]
 *
 * `<folder>` needs room for one output at a time; everything written is removed. Each side runs five times, in turn, each in a
 * process of its own whose peak resident memory is read when it ends (mapped files and all). The plain write repeats one 8 MB
 * buffer and calls fsync once at the end; upcycling flushes every file and the folder, hashes every tensor and writes its journal.
 */
import { spawnSync } from "node:child_process";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openModelSource } from "../src/model/source.ts";
import { upcycle } from "../src/upcycle/index.ts";

const numRounds = 5;

interface Measured {
  readonly seconds: number;
  readonly bytes: number;
  readonly peakBytes: number;
}

/** One side, in this process. */
function measure(side: string, dense: string, out: string, experts: number, bytes: number): Measured {
  const start = performance.now();
  if (side === "upcycle") upcycle(dense, out, { numExperts: experts, topK: 2, target: "mixtral" });
  else plainWrite(out, bytes);
  const seconds = (performance.now() - start) / 1000;
  const written = side === "upcycle" ? folderBytes(out) : bytes;
  return { seconds, bytes: written, peakBytes: process.resourceUsage().maxRSS * 1024 };
}
function plainWrite(path: string, bytes: number): void {
  const buffer = new Uint8Array(8 << 20).map((_, i) => (i * 2654435761) >>> 24);
  const fd = openSync(path, "w");
  for (let done = 0; done < bytes;) done += writeSync(fd, buffer, 0, Math.min(buffer.length, bytes - done), done);
  fsyncSync(fd);
  closeSync(fd);
}
function folderBytes(folder: string): number {
  return readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
}

function inProcess(side: string, dense: string, folder: string, experts: number, bytes: number): Measured {
  const out = join(folder, `bench-${side}`);
  rmSync(out, { recursive: true, force: true });
  const args = [fileURLToPath(import.meta.url), "--side", side, dense, out, String(experts), String(bytes)];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(stderr);
  rmSync(out, { recursive: true, force: true });
  return JSON.parse(stdout) as Measured;
}

function largestTensorBytes(dense: string): number {
  using source = openModelSource(dense);
  // In the output's type: f32 unless the source is bf16.
  const size = source.storedAs === "BF16" ? 2 : 4;
  return Math.max(...Array.from(source.tensors.values(), ({ shape }) => shape.reduce((a, b) => a * b, size)));
}
const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

function main(dense: string, folder: string, experts: number): void {
  mkdirSync(folder, { recursive: true });
  const results: Record<"upcycle" | "plain", Measured[]> = { upcycle: [], plain: [] };
  for (let round = 0; round < numRounds; round++) {
    // The first round tells how many bytes there are; later ones change who begins.
    const bytes = results.upcycle[0]?.bytes ?? 0;
    for (const side of round % 2 === 0 ? (["upcycle", "plain"] as const) : (["plain", "upcycle"] as const)) {
      results[side].push(inProcess(side, dense, folder, experts, bytes === 0 ? (results.upcycle[0]?.bytes ?? 0) : bytes));
    }
  }
  const speeds = (runs: readonly Measured[]): number[] => runs.map(({ bytes, seconds }) => bytes / seconds / 1e6);
  const speed = (runs: readonly Measured[]): number => median(speeds(runs));
  const peak = Math.max(...results.upcycle.map(({ peakBytes }) => peakBytes));
  const largest = largestTensorBytes(dense);
  console.log(`output ${((results.upcycle[0]?.bytes ?? 0) / 1e9).toFixed(2)} GB, ${experts} experts; ${numRounds} rounds, medians`);
  for (const side of ["upcycle", "plain"] as const) {
    const seconds = results[side].map((run) => run.seconds.toFixed(1)).join(", ");
    console.log(`${side.padEnd(8)} ${speed(results[side]).toFixed(0)} MB/s with fsync (${seconds} s)`);
  }
  console.log(`upcycling writes at ${(speed(results.upcycle) / speed(results.plain)).toFixed(2)} of the disk's speed (at least 0.5)`);
  // A disk that others use too: the fastest of each side is when they used it least.
  console.log(`fastest of each: ${(Math.max(...speeds(results.upcycle)) / Math.max(...speeds(results.plain))).toFixed(2)}`);
  const limit = 3 * largest + 200e6;
  console.log(
    `peak resident memory ${(peak / 1e6).toFixed(0)} MB; largest tensor ${(largest / 1e6).toFixed(0)} MB, limit ${(limit / 1e6).toFixed(0)} MB: ${peak <= limit ? "within" : "ABOVE"}`,
  );
}

const args = process.argv.slice(2);
if (args[0] === "--side") {
  const [, side = "", dense = "", out = "", experts = "", bytes = ""] = args;
  process.stdout.write(JSON.stringify(measure(side, dense, out, Number(experts), Number(bytes))));
} else {
  const [dense, folder, experts = "25"] = args;
  if (dense === undefined || folder === undefined || !existsSync(dense)) {
    console.error(readFileSync(fileURLToPath(import.meta.url), "utf8").match(/node benchmarks.*/)?.[0]);
    process.exitCode = 2;
  } else main(dense, folder, Number(experts));
}
