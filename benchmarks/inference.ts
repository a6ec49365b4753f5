/** The theme `inference`: FP8 beside llama.cpp's Q8_0, the server beside llama-server, bytes of FP8 files and of ranks. */
import type { Context } from "./context.ts";
import { fp8SizeNames, fp8SizeRows } from "./fp8-size.ts";
import { fp8TextNames, fp8TextRows } from "./fp8-text.ts";
import type { Row } from "./measure.ts";
import { serveNames, serveRows } from "./serve.ts";
import { tensorParallelNames, tensorParallelRows } from "./tensor-parallel.ts";

/** Names of all rows. */
export function inferenceNames(): string[] {
  return [...fp8TextNames, ...serveNames, ...fp8SizeNames, ...tensorParallelNames];
}

/** The rows that `context.only` asks for, each as soon as it is measured. */
export async function* inferenceRows(context: Context): AsyncGenerator<Row> {
  for (const rowsOf of [fp8TextRows, serveRows, fp8SizeRows, tensorParallelRows]) yield* rowsOf(context);
}
