/**
 * Rows `gemm.*` (our linear kernel beside PyTorch's `F.linear`, on every combination of the sizes that the models here have) and
 * `gemv.*` (one row, weights larger than any cache, beside the rate at which memory can be read at all).
 *
 * Legend: M rows, N output features, K input features; out[M,N] = x[M,K] . w[N,K]^T, weights and rows of one type, no bias.
 */
import type { Backend } from "../src/backend/backend.ts";
import { dtypeBytes, type Ptr } from "../src/backend/kernels.ts";
import { loadBackend } from "../src/backend/load.ts";
import { Random } from "../src/util/random.ts";
import { dtypeCode, precisions, startRival, wants, wanted, type Context, type Precision } from "./context.ts";
import { callsFor, interleave, timeCalls, type Row } from "./measure.ts";
import type { PythonRival } from "./process.ts";

interface Shape {
  readonly precision: Precision;
  readonly threads: number;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** What every row must reach; `report.ts` knows what the rows must reach together. */
const gemmBar = 0.75;
const gemvBar = 0.85;
const threadCounts = [1, 2] as const;
/** 1 GiB of weights, as much as the roof reads. */
const gemvBytes = 2 ** 30;
const gemvK = 4096;

function shapes(): Map<string, Shape> {
  const all = new Map<string, Shape>();
  for (const precision of precisions)
    for (const threads of threadCounts)
      for (const M of [64, 512, 2048])
        for (const N of [576, 1536, 4096])
          for (const K of [576, 1536, 4096]) all.set(`gemm.${precision}.t${threads}.m${M}.n${N}.k${K}`, { precision, threads, M, N, K });
  return all;
}

/** Names of the rows, in the order of measuring. */
export function linearNames(): string[] {
  return [...shapes().keys(), ...precisions.map((precision) => `gemv.${precision}`)];
}

/** Whether a product is large enough to be held against the roof. */
export function isRoofBound({ M, N, K }: Pick<Shape, "M" | "N" | "K">): boolean {
  return M >= 512 && N >= 512 && K >= 512;
}

/** Memory for `count` elements, uniform in -0.5 to 0.5; large ones repeat a block. Touched whole. */
function filled(backend: Backend, count: number, precision: Precision): Ptr {
  const bytes = dtypeBytes[precision];
  const ptr = backend.alloc(count * bytes);
  const random = new Random(1);
  const block = Float32Array.from({ length: Math.min(count, 1 << 20) }, () => random.uniform() - 0.5);
  const source = backend.alloc(block.byteLength);
  backend.write(source, block);
  for (let at = 0; at < count; at += block.length) {
    backend.kernels.cast(ptr + at * bytes, source, Math.min(block.length, count - at), dtypeCode(precision), 0);
  }
  backend.free(source);
  return ptr;
}

/** `linearForward` on operands of its own. */
class OurLinear implements Disposable {
  readonly #backend: Backend;
  readonly #operands: readonly Ptr[];
  readonly call: () => void;

  constructor(backend: Backend, { M, N, K, precision }: Shape) {
    const code = dtypeCode(precision);
    const out = backend.alloc(M * N * dtypeBytes[precision]);
    const [x, w] = [filled(backend, M * K, precision), filled(backend, N * K, precision)];
    this.#backend = backend;
    this.#operands = [out, x, w];
    this.call = () => backend.kernels.linearForward(out, x, w, 0, M, N, K, code, code, code);
  }
  [Symbol.dispose](): void {
    for (const ptr of this.#operands) this.#backend.free(ptr);
  }
}

async function measureGemm(context: Context, name: string, shape: Shape, backend: Backend, rival: PythonRival | string): Promise<Row> {
  const { effort, roof } = context;
  const { M, N, K, precision: dtype, threads } = shape;
  const work = (2 * M * N * K) / 1e9;
  using linear = new OurLinear(backend, shape);
  linear.call();
  const ourCalls = callsFor(effort.sampleSeconds, timeCalls(linear.call, 1));
  const sides = [{ sample: () => (work * ourCalls) / timeCalls(linear.call, ourCalls) }] as { sample: () => number | Promise<number> }[];
  if (typeof rival !== "string") {
    await rival.call("linear.setup", { m: M, n: N, k: K, dtype, threads });
    await rival.call("linear.sample", { calls: 1 });
    const calls = callsFor(effort.sampleSeconds, await rival.number("linear.sample", { calls: 1 }, "seconds"));
    sides.push({ sample: async () => (work * calls) / (await rival.number("linear.sample", { calls }, "seconds")) });
  }
  const needsRoof = isRoofBound(shape);
  if (needsRoof) sides.push({ sample: () => roof.arithmetic(dtype, threads) });
  const taken = await interleave(sides, effort);
  return {
    name,
    ours: taken[0] ?? [],
    rival: typeof rival === "string" ? [] : (taken[1] ?? []),
    unit: "GFLOP/s",
    bar: gemmBar,
    ...(needsRoof ? { roof: taken.at(-1) ?? [] } : {}),
    ...(typeof rival === "string" ? { note: rival } : {}),
  };
}

/** One row for every combination of sizes. */
export async function* gemmRows(context: Context): AsyncGenerator<Row> {
  const all = shapes();
  for (const threads of threadCounts) {
    const names = wanted(context, [...all.keys()]).filter((name) => all.get(name)?.threads === threads);
    if (names.length === 0) continue;
    // Memory that glibc would hand back to the system after every large result costs PyTorch page faults, which are not what is measured.
    const rival = await startRival("linear.versions", { MALLOC_MMAP_THRESHOLD_: "4294967296", MALLOC_TRIM_THRESHOLD_: "4294967296" });
    const backend = await loadBackend({ numThreads: threads });
    try {
      for (const name of names) {
        const shape = all.get(name);
        if (shape !== undefined) yield await measureGemm(context, name, shape, backend, rival);
      }
    } finally {
      backend.dispose();
      if (typeof rival !== "string") rival[Symbol.dispose]();
    }
  }
}

/** One row a precision: bytes of weights read a second. */
export async function* gemvRows(context: Context): AsyncGenerator<Row> {
  for (const precision of precisions) {
    const name = `gemv.${precision}`;
    if (!wants(context, name)) continue;
    const backend = await loadBackend();
    try {
      using linear = new OurLinear(backend, {
        precision,
        threads: backend.numThreads,
        M: 1,
        N: gemvBytes / dtypeBytes[precision] / gemvK,
        K: gemvK,
      });
      const ours = (): number => gemvBytes / 1e9 / timeCalls(linear.call, 1);
      const [taken = [], roof = []] = await interleave([{ sample: ours }, { sample: () => context.roof.bandwidth() }], context.effort);
      yield { name, ours: taken, rival: roof, unit: "GB/s", bar: gemvBar, roof };
    } finally {
      backend.dispose();
    }
  }
}
