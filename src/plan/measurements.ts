/**
 * Measured iteration times, as rows of a CSV file: what `moe plan calibrate` fits a cluster's efficiency to.
 *
 * The first line names the columns, in any order. Required: `# GPUs`, `global batch`, `micro batch`, `hidden size`, `attention heads`,
 * `# layers`, `sequence length`, `tensor parallelism`, `data parallelism`, `pipeline parallelism`, `iteration time (ms)`. Optional:
 * `parameters (billion)` (not used), `vocabulary` (default 50257), `recompute` (none, selective, full; default: the caller's),
 * `ffn size` (default 4 times the hidden size, GELU; where it is given, SwiGLU of that size), `kv heads`, `experts` and `top-k` (every layer
 * has so many experts of `ffn size`), `expert parallelism` (default 1), `zero` (0 to 3, default 0). Models are GPT-2's kind unless `ffn size` is given. Names are compared without case. These are the columns of the sets that
 * vTrain (arXiv 2312.12391) published.
 *
 * Not here: fitting (`calibrate.ts`).
 */
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { recomputeChoices, type Recompute } from "./types.ts";

/** One measured run, and the line of the file that it stood on. */
export interface Measurement {
  readonly line: number;
  readonly numDevices: number;
  readonly batchSequences: number;
  readonly microBatch: number;
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly numLayers: number;
  readonly sequenceLength: number;
  readonly vocabSize: number;
  /** Null: GPT-2's kind. */
  readonly ffnSize: number | null;
  /** Experts of `ffnSize` in every layer, and how many a token uses; 0: a dense network. */
  readonly numExperts: number;
  readonly topK: number;
  readonly tp: number;
  readonly dp: number;
  readonly pp: number;
  readonly ep: number;
  readonly zero: 0 | 1 | 2 | 3;
  /** Null: the file does not say. */
  readonly recompute: Recompute | null;
  readonly seconds: number;
}

const requiredColumns = [
  "# gpus",
  "global batch",
  "micro batch",
  "hidden size",
  "attention heads",
  "# layers",
  "sequence length",
  "tensor parallelism",
  "data parallelism",
  "pipeline parallelism",
  "iteration time (ms)",
] as const;
const optionalColumns = [
  "parameters (billion)",
  "vocabulary",
  "recompute",
  "ffn size",
  "kv heads",
  "experts",
  "top-k",
  "expert parallelism",
  "zero",
] as const;
type Column = (typeof requiredColumns)[number] | (typeof optionalColumns)[number];

const usualVocabulary = 50_257;

/** Reads the rows. Throws `file` naming the line for columns that are missing or unknown and for values that contradict each other. */
export function parseMeasurements(text: string, path: string): Measurement[] {
  const lines = text.split(/\r?\n/);
  const columns = parseColumns(lines[0] ?? "", path);
  const rows: Measurement[] = [];
  for (const [i, line] of lines.entries()) {
    if (i === 0 || line.trim() === "") continue;
    rows.push(parseRow(line.split(","), columns, i + 1, path));
  }
  if (rows.length === 0) throw new MoeError("file", `${path}: no rows behind the line of column names`);
  return rows;
}

function isColumn(name: string): name is Column {
  return [...requiredColumns, ...optionalColumns].some((column) => column === name);
}

function parseColumns(line: string, path: string): Map<Column, number> {
  const columns = new Map<Column, number>();
  for (const [i, raw] of line
    .replace(/^\uFEFF/, "")
    .split(",")
    .entries()) {
    const name = raw.trim().toLowerCase();
    if (!isColumn(name)) {
      const known = [...requiredColumns, ...optionalColumns];
      throw new MoeError("file", `${path}, line 1: unknown column "${raw.trim()}"${didYouMean(name, known)}; columns: ${known.join(", ")}`);
    }
    if (columns.has(name)) throw new MoeError("file", `${path}, line 1: column "${name}" is there twice`);
    columns.set(name, i);
  }
  const missing = requiredColumns.filter((column) => !columns.has(column));
  if (missing.length > 0) throw new MoeError("file", `${path}, line 1: no column ${missing.map((name) => `"${name}"`).join(", ")}`);
  return columns;
}

function parseRow(cells: readonly string[], columns: ReadonlyMap<Column, number>, line: number, path: string): Measurement {
  const fail = (problem: string): never => {
    throw new MoeError("file", `${path}, line ${line}: ${problem}`);
  };
  if (cells.length !== columns.size) fail(`expected ${columns.size} values, got ${cells.length}`);
  const text = (column: Column): string => {
    const index = columns.get(column);
    return index === undefined ? "" : (cells[index] ?? "").trim();
  };
  const number = (column: Column): number => {
    const value = Number(text(column));
    return text(column) !== "" && Number.isFinite(value) && value > 0
      ? value
      : fail(`${column}: expected a positive number, got "${text(column)}"`);
  };
  const count = (column: Column): number => {
    const value = number(column);
    return Number.isSafeInteger(value) ? value : fail(`${column}: expected a whole number, got "${text(column)}"`);
  };
  const given = (column: Column): boolean => text(column) !== "";
  const recompute = text("recompute").toLowerCase();
  const choice = recomputeChoices.find((one) => one === recompute);
  if (given("recompute") && choice === undefined) fail(`recompute: expected ${recomputeChoices.join(", ")}, got "${recompute}"`);
  const row: Measurement = {
    line,
    numDevices: count("# gpus"),
    batchSequences: count("global batch"),
    microBatch: count("micro batch"),
    hiddenSize: count("hidden size"),
    numHeads: count("attention heads"),
    numKvHeads: given("kv heads") ? count("kv heads") : count("attention heads"),
    numLayers: count("# layers"),
    sequenceLength: count("sequence length"),
    vocabSize: given("vocabulary") ? count("vocabulary") : usualVocabulary,
    ffnSize: given("ffn size") ? count("ffn size") : null,
    numExperts: given("experts") ? count("experts") : 0,
    topK: given("top-k") ? count("top-k") : 0,
    tp: count("tensor parallelism"),
    dp: count("data parallelism"),
    pp: count("pipeline parallelism"),
    ep: given("expert parallelism") ? count("expert parallelism") : 1,
    zero: zeroOf(text("zero"), fail),
    recompute: choice ?? null,
    seconds: number("iteration time (ms)") / 1000,
  };
  checkRow(row, fail);
  return row;
}

function zeroOf(text: string, fail: (problem: string) => never): 0 | 1 | 2 | 3 {
  const stages = [0, 1, 2, 3] as const;
  return stages.find((stage) => text === "" || text === String(stage)) ?? fail(`zero: expected 0, 1, 2 or 3, got "${text}"`);
}

function checkRow(row: Measurement, fail: (problem: string) => never): void {
  const { tp, dp, pp, numDevices, batchSequences, microBatch, numLayers, hiddenSize, numHeads, numKvHeads } = row;
  if (tp * dp * pp !== numDevices)
    fail(`tensor ${tp} * data ${dp} * pipeline ${pp} parallelism is ${tp * dp * pp}, not ${numDevices} GPUs`);
  if (batchSequences % (dp * microBatch) !== 0)
    fail(`data parallelism ${dp} * micro batch ${microBatch} does not divide the global batch ${batchSequences}`);
  if (pp > numLayers) fail(`pipeline parallelism ${pp} for ${numLayers} layers`);
  if (tp > numHeads) fail(`tensor parallelism ${tp} for ${numHeads} attention heads`);
  if (hiddenSize % numHeads !== 0) fail(`hidden size ${hiddenSize} is not a multiple of ${numHeads} attention heads`);
  const { numExperts, topK, ffnSize, ep } = row;
  if (numExperts > 0 && ffnSize === null) fail(`${numExperts} experts without their ffn size`);
  if (numExperts > 0 && (topK < 1 || topK > numExperts)) fail(`top-k ${topK} of ${numExperts} experts`);
  if (numExperts === 0 && (topK > 0 || ep > 1)) fail(`top-k ${topK} and expert parallelism ${ep} without experts`);
  if (numExperts > 0 && (ep > numExperts || (dp * tp) % ep !== 0))
    fail(`expert parallelism ${ep} with ${numExperts} experts on data ${dp} * tensor ${tp} parallelism`);
  if (numHeads % numKvHeads !== 0) fail(`${numHeads} attention heads are not a multiple of ${numKvHeads} kv heads`);
}
