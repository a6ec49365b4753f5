/** The theme `engine`: kernels, a training step, text, WebAssembly. Its rows' names are fixed: whoever compares two runs relies on them. */
import type { Context } from "./context.ts";
import { gemmRows, gemvRows, linearNames } from "./linear.ts";
import type { Row } from "./measure.ts";
import { textRows } from "./text.ts";
import { trainRows } from "./train.ts";
import { wasmRows } from "./wasm.ts";

/** Names of all rows. */
export function engineNames(): string[] {
  return [...linearNames(), "train.f32", "train.bf16", "decode.bf16", "prefill.bf16", "wasm.gemm", "train.memory"];
}

/** The rows that `context.only` asks for, each as soon as it is measured. */
export async function* engineRows(context: Context): AsyncGenerator<Row> {
  for (const rowsOf of [gemmRows, gemvRows, trainRows, textRows, wasmRows]) yield* rowsOf(context);
}
