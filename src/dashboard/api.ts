/**
 * What the dashboard's server and its page say to each other: types only, so that the page (a package of its own, `dashboard/`) can import
 * them and bring nothing else along. All of it is JSON; `null` stands where a number is missing or not finite. Steps are optimizer steps;
 * the metrics themselves are defined in docs/metrics.md.
 */

/** A folder with a run in it, or with files that the dashboard can show. */
export interface RunSummary {
  /** Stable for a folder: a hash of its path below the root. The only name by which requests can ask for it. */
  readonly id: string;
  /** Path below the root, "." for the root itself. */
  readonly name: string;
  readonly kind: "run" | "files";
  /** `live`: a process trains there now. `done`: its last step is the last of the configuration. */
  readonly state: "live" | "done" | "stopped" | "empty";
  /** Of the newest step record. */
  readonly lastStep: number | null;
  readonly numSteps: number | null;
  readonly lastLoss: number | null;
  readonly modified: number;
}

export interface RunList {
  readonly root: string;
  readonly runs: readonly RunSummary[];
  /** Runs that were not listed because there are too many. */
  readonly truncated: boolean;
  /** Address of a served model, where one is watched. */
  readonly server: string | null;
}

export interface IndexState {
  readonly bytes: number;
  readonly totalBytes: number;
  readonly complete: boolean;
  /** Changes with every record that comes. */
  readonly version: number;
  readonly numSteps: number;
  readonly firstStep: number | null;
  readonly lastStep: number | null;
  /** Lines that are no records: not JSON, too long, without a step, or out of order. */
  readonly badLines: number;
  /** The first of them, told in words. */
  readonly firstProblem: string | null;
}

export interface LayerShape {
  readonly layer: number;
  readonly numExperts: number;
}

export type ArtifactKind = "evaluation" | "trace" | "plan" | "receipt";
export interface ArtifactSummary {
  readonly id: string;
  readonly kind: ArtifactKind;
  readonly name: string;
}

export interface RunDetail {
  readonly id: string;
  readonly name: string;
  readonly state: RunSummary["state"];
  readonly index: IndexState;
  /** Scalar metrics that at least one step record has. */
  readonly scalars: readonly string[];
  /** Per-layer metrics that at least one step record has. */
  readonly layerMetrics: readonly string[];
  readonly layers: readonly LayerShape[];
  readonly topK: number | null;
  readonly evaluations: readonly string[];
  readonly similaritySteps: readonly number[];
  readonly sampleSteps: readonly number[];
  readonly prompts: readonly string[];
  readonly artifacts: readonly ArtifactSummary[];
  /** A line in `metrics.jsonl` said that routing was forced. */
  readonly forcedBalance: boolean;
  /** config.json, cut in depth and length. */
  readonly config: Json | null;
  readonly problems: readonly string[];
}

export type Json = string | number | boolean | null | readonly Json[] | { readonly [key: string]: Json };
export type MaybeNumber = number | null;

/** Buckets of consecutive records. Where each holds one record, `min` and `max` are absent. */
export interface Series {
  readonly mean: readonly MaybeNumber[];
  readonly min?: readonly MaybeNumber[];
  readonly max?: readonly MaybeNumber[];
}
export interface SeriesAnswer {
  /** Last step of each bucket. */
  readonly steps: readonly number[];
  readonly series: Readonly<Record<string, Series>>;
}
export interface EvaluationSeries {
  readonly name: string;
  readonly steps: readonly number[];
  readonly loss: readonly MaybeNumber[];
  readonly standardError: readonly MaybeNumber[];
}
/** A per-layer metric over steps: rows are layers, columns buckets. */
export interface GridAnswer {
  readonly key: string;
  readonly steps: readonly number[];
  readonly layers: readonly number[];
  readonly values: readonly (readonly MaybeNumber[])[];
}
/** Load of every expert of every layer at a step or averaged over steps, as a share of all assignments. */
export interface LoadAnswer {
  /** First and last step that went in, and how many records. */
  readonly from: number | null;
  readonly to: number | null;
  readonly numRecords: number;
  readonly layers: readonly { readonly layer: number; readonly load: readonly MaybeNumber[] }[];
}
/** Load of the experts of one layer over steps: rows are experts, columns buckets (means). */
export interface ExpertsAnswer {
  readonly layer: number;
  readonly steps: readonly number[];
  readonly load: readonly (readonly MaybeNumber[])[];
}
export interface SimilaritySeries {
  readonly steps: readonly number[];
  readonly layers: readonly {
    readonly layer: number;
    readonly weights: readonly MaybeNumber[];
    readonly outputs: readonly MaybeNumber[];
  }[];
}
export interface SimilarityMatrix {
  readonly step: number;
  readonly layer: number;
  readonly weights: readonly (readonly MaybeNumber[])[];
  readonly outputs: readonly (readonly MaybeNumber[])[];
  /** Sorted gate probabilities, empty in records that have none. */
  readonly gates: readonly MaybeNumber[];
}
export interface SampleText {
  readonly step: number;
  readonly prompt: number;
  readonly promptTokens: number;
  readonly tokens: readonly string[];
  readonly layers: readonly number[];
  readonly experts: readonly (readonly (readonly number[])[])[];
  readonly weights: readonly (readonly (readonly number[])[])[];
}

export interface TraceLane {
  readonly process: string;
  readonly thread: string;
  /** Share of the timeline in which something runs here. */
  readonly busy: number;
}
/** Times are microseconds from the first event. */
export interface TraceEvent {
  readonly lane: number;
  readonly name: string;
  readonly category: string;
  readonly start: number;
  readonly duration: number;
  readonly args: Readonly<Record<string, string | number>>;
}
export interface TraceCounter {
  readonly process: string;
  readonly name: string;
  readonly times: readonly number[];
  readonly values: readonly number[];
}
export interface TraceAnswer {
  readonly kind: "trace";
  readonly name: string;
  readonly duration: number;
  readonly lanes: readonly TraceLane[];
  readonly events: readonly TraceEvent[];
  readonly counters: readonly TraceCounter[];
  /** Idle share of lanes that compute, over their common span: 1 - mean busy. */
  readonly bubble: number;
  readonly truncated: boolean;
  /** What the file says beside its events. */
  readonly metadata: Json;
}
export interface EvaluationRow {
  readonly task: string;
  readonly depth: number;
  readonly filter: string;
  readonly shots: number | null;
  readonly metric: string;
  readonly value: number;
  readonly standardError: number | null;
  readonly higherIsBetter: boolean | null;
}
export interface EvaluationAnswer {
  readonly kind: "evaluation";
  readonly name: string;
  readonly model: string | null;
  readonly date: number | null;
  readonly rows: readonly EvaluationRow[];
}
export interface DocumentAnswer {
  readonly kind: "plan" | "receipt";
  readonly name: string;
  readonly document: Json;
}
export type ArtifactAnswer = TraceAnswer | EvaluationAnswer | DocumentAnswer;

/** One reading of a served model. Counts are since the reading before, rates per second. */
export interface ServerReading {
  readonly time: number;
  readonly running: number;
  readonly waiting: number;
  readonly cacheUsage: number;
  readonly generatedPerSecond: MaybeNumber;
  readonly promptPerSecond: MaybeNumber;
  /** Seconds, quantiles of what ended since the reading before; null where nothing did. */
  readonly timeToFirstToken: { readonly p50: MaybeNumber; readonly p95: MaybeNumber };
  readonly interTokenLatency: { readonly p50: MaybeNumber; readonly p95: MaybeNumber };
  /** Tokens that each expert got since the reading before, and since the server began. */
  readonly experts: readonly { readonly layer: number; readonly tokens: readonly number[]; readonly total: readonly number[] }[];
}
export interface ServerAnswer {
  readonly url: string;
  readonly error: string | null;
  readonly readings: readonly ServerReading[];
}

/** Server-sent events, by the name of the event. */
export interface Events {
  readonly runs: { readonly reason: string };
  readonly run: { readonly id: string; readonly state: RunSummary["state"]; readonly index: IndexState };
  readonly server: ServerAnswer;
}
