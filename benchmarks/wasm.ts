/**
 * Row `wasm.gemm`: a 1024 x 1024 x 1024 product of f32 in our WebAssembly engine with one thread, beside jax-js's WebAssembly engine (which has
 * one thread) in the same Node. jax-js runs x . w and x . w^T at different speeds; its faster one counts, as a compiled (`jit`) function.
 */
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { loadBackend } from "../src/backend/load.ts";
import { Random } from "../src/util/random.ts";
import { messageOf, wants, type Context } from "./context.ts";
import { fastest, interleave, timeCalls, type Row, type Side } from "./measure.ts";

const name = "wasm.gemm";
const bar = 1.2;
const size = 1024;
const gigaflop = (2 * size ** 3) / 1e9;

/** What is used of jax-js. Arrays are counted by hand: an operation uses up its operands, `ref` keeps one for later. */
interface JaxArray {
  readonly ref: JaxArray;
  reshape(shape: readonly number[]): JaxArray;
  dispose(): void;
  dataSync(): Float32Array;
}
interface Jax {
  init(device: string): Promise<readonly string[]>;
  defaultDevice(device: string): void;
  jit(fn: (x: JaxArray, w: JaxArray) => JaxArray): (x: JaxArray, w: JaxArray) => JaxArray;
  blockUntilReady(x: JaxArray): Promise<JaxArray>;
  readonly numpy: {
    array(data: Float32Array): JaxArray;
    matmul(x: JaxArray, y: JaxArray): JaxArray;
    transpose(x: JaxArray): JaxArray;
  };
}

/** Sides of jax-js, and the sum of absolute differences from `expected` of the one that computes the same product. */
async function jaxSides(x: Float32Array, w: Float32Array, expected: Float32Array): Promise<Side[]> {
  const path = createRequire(import.meta.url)
    .resolve("@jax-js/jax")
    .replace(/\.cjs$/, ".js");
  const jax = (await import(pathToFileURL(path).href)) as Jax;
  if (!(await jax.init("wasm")).includes("wasm")) throw new Error("jax-js: its wasm device does not start here");
  jax.defaultDevice("wasm");
  const { numpy } = jax;
  const [a, b] = [numpy.array(x).reshape([size, size]), numpy.array(w).reshape([size, size])];
  const transposed = jax.jit((p, q) => numpy.matmul(p, numpy.transpose(q)));
  const plain = jax.jit((p, q) => numpy.matmul(p, q));
  const result = transposed(a.ref, b.ref).dataSync();
  const gap = result.reduce((most, value, i) => Math.max(most, Math.abs(value - (expected[i] ?? Number.NaN))), 0);
  if (!(gap < 1e-2)) throw new Error(`jax-js: its product differs from ours by ${gap}`);
  return [transposed, plain].map((fn) => ({
    sample: async () => {
      const started = performance.now();
      const product = await jax.blockUntilReady(fn(a.ref, b.ref));
      const seconds = (performance.now() - started) / 1000;
      product.dispose();
      return gigaflop / seconds;
    },
  }));
}

/** The row `wasm.gemm`. Where jax-js is not installed (`npm ci` in this folder), the rival is empty. */
export async function* wasmRows(context: Context): AsyncGenerator<Row> {
  if (!wants(context, name)) return;
  const backend = await loadBackend({ engine: "wasm", numThreads: 1 });
  try {
    const random = new Random(1);
    const [x, w] = [0, 1].map(() => Float32Array.from({ length: size * size }, () => random.uniform() - 0.5)) as [
      Float32Array,
      Float32Array,
    ];
    const [out, px, pw] = [backend.alloc(4 * size * size), backend.alloc(x.byteLength), backend.alloc(w.byteLength)];
    backend.write(px, x);
    backend.write(pw, w);
    const call = (): void => backend.kernels.linearForward(out, px, pw, 0, size, size, size, 0, 0, 0);
    call();
    const product = new Float32Array(size * size);
    backend.read(product, out);
    let theirs: Side[] = [];
    let note: string | undefined;
    try {
      theirs = await jaxSides(x, w, product);
    } catch (error) {
      note = `the rival does not run: ${messageOf(error)}`;
    }
    const [ours = [], ...rest] = await interleave([{ sample: () => gigaflop / timeCalls(call, 1) }, ...theirs], context.effort);
    const others = Object.fromEntries(["jax-js, x . w^T", "jax-js, x . w"].slice(0, rest.length).map((way, i) => [way, rest[i] ?? []]));
    yield { name, ours, rival: fastest(rest), unit: "GFLOP/s", bar, others, ...(note === undefined ? {} : { note }) };
  } finally {
    backend.dispose();
  }
}
