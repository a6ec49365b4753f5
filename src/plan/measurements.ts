/**
 * Measured iteration times, as rows of a CSV file: what `moe plan calibrate` fits a cluster's efficiency to.
 *
 * The first line names the columns, in any order. Required: `# GPUs`, `global batch`, `micro batch`, `hidden size`, `attention heads`,
 * `# layers`, `sequence length`, `tensor parallelism`, `data parallelism`, `pipeline parallelism`, `iteration time (ms)`. Optional:
 * `parameters (billion)` (not used), `vocabulary` (default 50257), `recompute` (none, selective, full; default: the caller's),
 * `ffn size` (default 4 times the hidden size, GELU; where it is given, SwiGLU of that size), `kv heads`, `experts` and `top-k` (every layer
 * has so many experts of `ffn size`), `expert parallelism` and `expert tensor parallelism` (default 1), `zero` (0 to 3, default 0), `sequence parallel` (0 or
 * 1, default 0), `stage layers` and `recomputed layers` (of each pipeline stage, as `5+3`; default: as even as can be, and what `recompute` says), `name`
 * and `bubble` (a label, and the share of the pipeline's time in which ranks waited: kept beside the row, not fitted). Models are GPT-2's kind unless
 * `ffn size` is given. Names are compared without case. The required ones are the columns of the sets that vTrain (arXiv 2312.12391) published.
 *
 * Not here: fitting (`calibrate.ts`).
 */
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";
import { equalCounts } from "../util/partition.ts";
import { recomputeChoices, type Recompute } from "./types.ts";

/** One measured run, and the line of the file that it stood on. */
export interface Measurement {
  readonly line: number;
  /** A label; empty where there is none. */
  readonly name: string;
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
  readonly etp: number;
  readonly zero: 0 | 1 | 2 | 3;
  readonly sequenceParallel: boolean;
  /** Null: the file does not say. */
  readonly recompute: Recompute | null;
  /** Layers of each pipeline stage; null: as even as can be. */
  readonly stageLayers: readonly number[] | null;
  /** Of them, the first so many are recomputed wholly; null: as `recompute` says. */
  readonly recomputedLayers: readonly number[] | null;
  readonly seconds: number;
  /** Measured share of the pipeline's time in which its ranks waited; null: the file does not say. */
  readonly bubbleFraction: number | null;
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
  "expert tensor parallelism",
  "zero",
  "sequence parallel",
  "stage layers",
  "recomputed layers",
  "name",
  "bubble",
] as const;
type Column = (typeof requiredColumns)[number] | (typeof optionalColumns)[number];

const usualVocabulary = 50_257;
/** More than any model has: a slip of the pen would otherwise be summed up layer by layer. */
const mostLayers = 100_000;

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
  const { text, given, number, count, list, share, choice } = readerOf(cells, columns, fail);
  const row: Measurement = {
    line,
    name: text("name"),
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
    etp: given("expert tensor parallelism") ? count("expert tensor parallelism") : 1,
    zero: choice("zero", [0, 1, 2, 3], "0, 1, 2 or 3") ?? 0,
    sequenceParallel: choice("sequence parallel", [0, 1], "0 or 1") === 1,
    recompute: choice("recompute", recomputeChoices, recomputeChoices.join(", ")),
    stageLayers: list("stage layers"),
    recomputedLayers: list("recomputed layers"),
    seconds: number("iteration time (ms)") / 1000,
    bubbleFraction: share("bubble"),
  };
  checkRow(row, fail);
  return row;
}

/** The cells of a row by column. What is optional and not given is null. */
interface Reader {
  readonly text: (column: Column) => string;
  readonly given: (column: Column) => boolean;
  readonly number: (column: Column) => number;
  readonly count: (column: Column) => number;
  readonly list: (column: Column) => readonly number[] | null;
  readonly share: (column: Column) => number | null;
  readonly choice: <T extends string | number>(column: Column, choices: readonly T[], expected: string) => T | null;
}

function readerOf(cells: readonly string[], columns: ReadonlyMap<Column, number>, fail: (problem: string) => never): Reader {
  const text = (column: Column): string => {
    const index = columns.get(column);
    return index === undefined ? "" : (cells[index] ?? "").trim();
  };
  const given = (column: Column): boolean => text(column) !== "";
  const refuse = (column: Column, expected: string): never => fail(`${column}: expected ${expected}, got "${text(column)}"`);
  const number = (column: Column): number => {
    const value = Number(text(column));
    return given(column) && Number.isFinite(value) && value > 0 ? value : refuse(column, "a positive number");
  };
  return {
    text,
    given,
    number,
    count: (column) => {
      const value = number(column);
      return Number.isSafeInteger(value) ? value : refuse(column, "a whole number");
    },
    list: (column) => {
      if (!given(column)) return null;
      const parts = text(column).split("+");
      return parts.every((part) => /^\s*\d{1,9}\s*$/.test(part))
        ? parts.map(Number)
        : refuse(column, "a whole number for each stage, as 5+3");
    },
    share: (column) => {
      const value = Number(text(column));
      if (!given(column)) return null;
      return value >= 0 && value < 1 ? value : refuse(column, "a share of at least 0 and below 1");
    },
    choice: (column, choices, expected) => {
      if (!given(column)) return null;
      return choices.find((one) => String(one) === text(column).toLowerCase()) ?? refuse(column, expected);
    },
  };
}

function checkRow(row: Measurement, fail: (problem: string) => never): void {
  const { tp, dp, pp, numDevices, batchSequences, microBatch, numLayers, hiddenSize, numHeads, numKvHeads } = row;
  if (tp * dp * pp !== numDevices)
    fail(`tensor ${tp} * data ${dp} * pipeline ${pp} parallelism is ${tp * dp * pp}, not ${numDevices} GPUs`);
  if (batchSequences % (dp * microBatch) !== 0)
    fail(`data parallelism ${dp} * micro batch ${microBatch} does not divide the global batch ${batchSequences}`);
  if (numLayers > mostLayers) fail(`# layers: expected at most ${mostLayers}, got ${numLayers}`);
  if (pp > numLayers) fail(`pipeline parallelism ${pp} for ${numLayers} layers`);
  checkStages(row, fail);
  if (row.sequenceParallel && tp === 1) fail("sequence parallel with tensor parallelism 1");
  if (tp > numHeads) fail(`tensor parallelism ${tp} for ${numHeads} attention heads`);
  if (hiddenSize % numHeads !== 0) fail(`hidden size ${hiddenSize} is not a multiple of ${numHeads} attention heads`);
  const { numExperts, topK, ffnSize, ep, etp } = row;
  if (numExperts > 0 && ffnSize === null) fail(`${numExperts} experts without their ffn size`);
  if (numExperts > 0 && (topK < 1 || topK > numExperts)) fail(`top-k ${topK} of ${numExperts} experts`);
  if (numExperts === 0 && (topK > 0 || ep * etp > 1)) fail(`top-k ${topK} and expert parallelism ${ep * etp} without experts`);
  if (numExperts > 0 && (ep > numExperts || (dp * tp) % (ep * etp) !== 0)) {
    const degrees = etp === 1 ? `expert parallelism ${ep}` : `expert parallelism ${ep} * expert tensor parallelism ${etp}`;
    fail(`${degrees} with ${numExperts} experts on data ${dp} * tensor ${tp} parallelism`);
  }
  if (numHeads % numKvHeads !== 0) fail(`${numHeads} attention heads are not a multiple of ${numKvHeads} kv heads`);
}

function checkStages({ pp, numLayers, stageLayers, recomputedLayers }: Measurement, fail: (problem: string) => never): void {
  for (const [name, list] of Object.entries({ "stage layers": stageLayers, "recomputed layers": recomputedLayers }))
    if (list !== null && list.length !== pp) fail(`${name} ${list.join("+")} are of ${list.length} stages, pipeline parallelism is ${pp}`);
  const sum = stageLayers?.reduce((a, b) => a + b, 0) ?? numLayers;
  if (sum !== numLayers || stageLayers?.includes(0) === true) fail(`stage layers ${stageLayers?.join("+")} of ${numLayers} layers`);
  const layers = stageLayers ?? equalCounts(numLayers, pp);
  const over = recomputedLayers?.findIndex((count, s) => count > (layers[s] ?? 0)) ?? -1;
  if (over >= 0) fail(`recomputed layers ${recomputedLayers?.join("+")}: stage ${over} has ${layers[over]}`);
}
