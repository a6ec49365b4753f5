/**
 * An index of one `metrics.jsonl` (docs/metrics.md), in memory, built once and then only added to: a column a metric, a column a metric and
 * layer, a table of expert loads. Similarity records are large and few: of them the means are kept and where the line is in the file.
 * The file is somebody else's: lines that are no records are counted and passed over.
 *
 * Memory: 4 bytes a number of a layer or an expert. 100,000 steps of 52 layers with 16 experts take about 600 MB; their file has 3 GB.
 */
import type { LayerShape, SimilarityMatrix } from "./api.ts";
import { Column, LoadTable, rounded } from "./columns.ts";
import type { Line } from "./line-tail.ts";
import { asArray, asCount, asNumber, asObject, asText, eachNumber, parseJson } from "./record.ts";

/** Metrics of a layer that are one number. */
export const layerMetricKeys = [
  "dropRate",
  "coefficient",
  "auxiliaryLoss",
  "switchLoss",
  "sequenceLoss",
  "zLoss",
  "max1OverMax2",
  "max2OverMax3",
  "gateEntropy",
  "loadEntropy",
  "maxOverMeanLoad",
  "deadExperts",
] as const;
export type LayerMetricKey = (typeof layerMetricKeys)[number];

const maxScalars = 256;
const maxNames = 64;
/** Layers times experts. */
const maxLoads = 1 << 20;

export interface EvaluationPoint {
  readonly step: number;
  readonly loss: number;
  readonly standardError: number;
}
export interface SimilarityPoint {
  readonly step: number;
  readonly line: Pick<Line, "offset" | "length">;
  readonly layers: readonly { readonly layer: number; readonly weights: number; readonly outputs: number }[];
}

export class MetricsIndex {
  /** Step of each row, strictly ascending. */
  readonly steps = new Column("f64");
  numRows = 0;
  readonly scalars = new Map<string, Column>();
  /** By key, then by the layer's place in `layers`. */
  readonly layerMetrics = new Map<LayerMetricKey, Column[]>();
  layers: readonly LayerShape[] = [];
  /** Loads of records that have all of them, and their steps. */
  loads: LoadTable | null = null;
  readonly loadSteps = new Column("f64");
  readonly evaluations = new Map<string, EvaluationPoint[]>();
  readonly similarity: SimilarityPoint[] = [];
  forcedBalance = false;
  badLines = 0;
  firstProblem: string | null = null;
  #lastStep = -1;
  /** Place of a layer's number in `layers`, and of its first expert in a row of `loads`. */
  #places = new Map<number, { index: number; offset: number; numExperts: number }>();

  /** Adds a line. */
  add(line: Line): void {
    if (line.text.trim() === "") return;
    const record = asObject(parseJson(line.text));
    if (record === null) return this.#bad("a line that is not a JSON object", line);
    const step = asCount(record["step"]);
    if (step === null) return this.#bad("a record without a step", line);
    if (record["forcedBalance"] === true) this.forcedBalance = true;
    switch (record["type"]) {
      case "step":
        return this.#addStep(step, record, line);
      case "evaluation":
        return this.#addEvaluation(step, record, line);
      case "similarity":
        return this.#addSimilarity(step, record, line);
      default:
        // Records of a kind that later versions may write are no mistake.
        return typeof record["type"] === "string" ? undefined : this.#bad("a record without a type", line);
    }
  }
  /** Lines that were passed over before they came here. */
  addTooLong(count: number): void {
    if (count === 0) return;
    this.badLines += count;
    this.firstProblem ??= "a line that is too long to be a record";
  }
  #bad(what: string, { offset, text }: Line): void {
    this.badLines++;
    this.firstProblem ??= `${what} at byte ${offset}: ${JSON.stringify(text.slice(0, 60))}`;
  }

  get lastStep(): number | null {
    return this.#lastStep < 0 ? null : this.#lastStep;
  }

  #addStep(step: number, record: Readonly<Record<string, unknown>>, line: Line): void {
    if (step <= this.#lastStep) return this.#bad(`step ${step} after step ${this.#lastStep}`, line);
    this.#lastStep = step;
    const row = this.numRows++;
    this.steps.set(row, step);
    for (const key in record) if (key !== "step" && key !== "layers") this.#addScalar(row, key, record[key]);
    const layers = asArray(record["layers"]);
    if (layers.length === 0) return;
    if (this.layers.length === 0) this.#shape(layers);
    const loads: (readonly unknown[])[] = [];
    for (const item of layers) {
      const layer = asObject(item);
      const place = layer === null ? undefined : this.#places.get(asNumber(layer["layer"]));
      if (layer === null || place === undefined) continue;
      for (const key of layerMetricKeys) {
        const value = layer[key];
        if (typeof value === "number") this.#layerColumns(key)[place.index]?.set(row, value);
      }
      const load = asArray(layer["load"]);
      if (load.length === place.numExperts && load.every((value) => typeof value === "number" && Number.isFinite(value)))
        loads[place.index] = load;
    }
    this.#addLoads(step, loads);
  }
  #addScalar(row: number, key: string, value: unknown): void {
    if (typeof value === "number") {
      if (Number.isFinite(value)) this.#scalar(key)?.set(row, value);
      return;
    }
    const inner = asObject(value);
    if (inner !== null) eachNumber(inner, (path, number) => this.#scalar(`${key}.${path}`)?.set(row, number));
  }
  #scalar(key: string): Column | undefined {
    const known = this.scalars.get(key);
    if (known !== undefined || this.scalars.size >= maxScalars || !/^[A-Za-z][\w.-]{0,120}$/.test(key)) return known;
    const column = new Column("f64");
    this.scalars.set(key, column);
    return column;
  }
  #layerColumns(key: LayerMetricKey): Column[] {
    let columns = this.layerMetrics.get(key);
    if (columns === undefined) {
      columns = this.layers.map(() => new Column("f32"));
      this.layerMetrics.set(key, columns);
    }
    return columns;
  }
  /** The layers that the run has are those of its first record that has any. */
  #shape(layers: readonly unknown[]): void {
    const shapes: LayerShape[] = [];
    let width = 0;
    for (const item of layers) {
      const layer = asCount(asObject(item)?.["layer"]);
      const numExperts = asArray(asObject(item)?.["load"]).length;
      if (layer === null || this.#places.has(layer) || width + numExperts > maxLoads) continue;
      this.#places.set(layer, { index: shapes.length, offset: width, numExperts });
      shapes.push({ layer, numExperts });
      width += numExperts;
    }
    this.layers = shapes;
    this.loads = new LoadTable(width);
  }
  #addLoads(step: number, loads: readonly (readonly unknown[])[]): void {
    const { loads: table } = this;
    if (table === null || table.width === 0) return;
    for (let index = 0; index < this.layers.length; index++) if (loads[index] === undefined) return;
    this.loadSteps.set(table.numRows, step);
    table.push((into) => {
      let at = 0;
      for (const load of loads) for (const value of load) into[at++] = value as number;
    });
  }

  #addEvaluation(step: number, record: Readonly<Record<string, unknown>>, line: Line): void {
    const name = asText(record["name"], 200);
    if (name === null || (!this.evaluations.has(name) && this.evaluations.size >= maxNames))
      return this.#bad("an evaluation without a name", line);
    const points = this.evaluations.get(name) ?? [];
    points.push({ step, loss: asNumber(record["loss"]), standardError: asNumber(record["standardError"]) });
    this.evaluations.set(name, points);
  }

  #addSimilarity(step: number, record: Readonly<Record<string, unknown>>, line: Line): void {
    const layers = asArray(record["layers"]).flatMap((item) => {
      const layer = asObject(item);
      const number = asCount(layer?.["layer"]);
      if (layer === null || number === null) return [];
      const mean = (of: string): number => asNumber(asObject(layer[of])?.["mean"]);
      return [{ layer: number, weights: mean("weights"), outputs: mean("outputs") }];
    });
    if (layers.length === 0) return this.#bad("a similarity record without layers", line);
    this.similarity.push({ step, line: { offset: line.offset, length: line.length }, layers });
  }

  /** Place of the first expert of a layer in a row of `loads`. */
  place(layer: number): { index: number; offset: number; numExperts: number } | null {
    return this.#places.get(layer) ?? null;
  }
  /** Rows whose steps are from `from` to `to`, both included: first row, and the row after the last. */
  rowsBetween(from: number, to: number): [number, number] {
    return rowsBetween(this.steps, this.numRows, from, to);
  }
  loadRowsBetween(from: number, to: number): [number, number] {
    return rowsBetween(this.loadSteps, this.loads?.numRows ?? 0, from, to);
  }
}

function rowsBetween(steps: Column, numRows: number, from: number, to: number): [number, number] {
  const first = firstRowAfter(steps, numRows, (step) => step >= from);
  return [
    first,
    Math.max(
      first,
      firstRowAfter(steps, numRows, (step) => step > to),
    ),
  ];
}
/** First of the ascending rows for which `isAfter` holds, by bisection. */
function firstRowAfter(steps: Column, numRows: number, isAfter: (step: number) => boolean): number {
  let [low, high] = [0, numRows];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (isAfter(steps.get(middle))) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Matrices of one layer in a similarity record, from its line. Null where it has none. */
export function similarityMatrix(text: string, layer: number): SimilarityMatrix | null {
  const record = asObject(parseJson(text));
  const found = asArray(record?.["layers"])
    .map(asObject)
    .find((item) => item?.["layer"] === layer);
  if (record === null || found === undefined || found === null) return null;
  const matrix = (of: string): (number | null)[][] =>
    asArray(asObject(found[of])?.["matrix"])
      .slice(0, 1024)
      .map((row) =>
        asArray(row)
          .slice(0, 1024)
          .map((value) => rounded(asNumber(value))),
      );
  const gates = asArray(found["gates"])
    .slice(0, 1024)
    .map((value) => rounded(asNumber(value)));
  return { step: asCount(record["step"]) ?? 0, layer, weights: matrix("weights"), outputs: matrix("outputs"), gates };
}
