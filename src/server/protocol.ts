/**
 * What the main thread (HTTP) and the engine's thread say to each other: plain data that structured cloning carries. Everything that costs
 * time is on the engine's side: templates, tokenizing, schemas, the model.
 */
import type { SamplingOptions } from "../generate/index.ts";
import type { ActivationChoice, CacheDType } from "../model/index.ts";
import type { Launcher } from "../parallel/index.ts";
import type { ServingStats } from "../serve/index.ts";
import type { ErrorData } from "./errors.ts";

/** How the engine's thread opens a model. */
export interface EngineSettings {
  readonly modelPath: string;
  readonly dtype: "f32" | "bf16" | null;
  readonly cacheDtype: CacheDType | null;
  /** What is done to what FP8 matrices are multiplied with. Absent: nothing. */
  readonly activations?: ActivationChoice;
  /** Sequences that run at once. */
  readonly maxBatch: number;
  /** Tokens of prompt and output; null: what the model was made for. */
  readonly maxContext: number | null;
  /** Bytes of the KV cache; null: as many as `maxBatch` sequences can use, up to half of the memory that is available. */
  readonly cacheBytes: number | null;
  /** Guess tokens by looking up what came before (speculative decoding); null: do not. */
  readonly speculate: "ngram" | null;
  /** A smaller model with the same vocabulary that guesses tokens, instead; null or absent: none. */
  readonly draftModel?: string | null;
  /** Cut the model over ranks; null or absent: do not. The bytes of the cache are then those of all ranks together. */
  readonly tp?: TensorParallelSettings | null;
}
export interface TensorParallelSettings {
  readonly ranks: number;
  /** Relative speed of each rank; null: equal. */
  readonly weights: readonly number[] | null;
  /** Bytes that each rank can hold; null: no limit. */
  readonly memoryBytes: readonly number[] | null;
  /** Where ranks are processes: who started them, this one as rank 0. Null or absent: they are threads. */
  readonly launcher?: Launcher | null;
}

/** What the main thread has to know of a model. */
export interface ModelInfo {
  readonly maxContext: number;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly hasChatTemplate: boolean;
  readonly engine: string;
  readonly numParams: number;
  readonly cacheBytes: number;
  /** Bytes of weights and cache, rank by rank, where the model is cut. */
  readonly ranks: readonly RankHolding[];
}
export interface RankHolding {
  readonly plannedBytes: number;
  readonly heldBytes: number;
  /** Its process. */
  readonly host: string;
  readonly pid: number;
}

export interface ToolFunction {
  readonly name: string;
  readonly description?: string;
  readonly parameters?: unknown;
}

export interface ChatTask {
  readonly messages: readonly Readonly<Record<string, unknown>>[];
  readonly tools: readonly ToolFunction[];
  readonly variables: Readonly<Record<string, unknown>>;
}

export type PromptSource =
  | { readonly kind: "text"; readonly text: string; readonly addSpecialTokens: boolean }
  | { readonly kind: "ids"; readonly ids: readonly number[] }
  | { readonly kind: "chat"; readonly chat: ChatTask };

/** What the text has to be. */
export type OutputFormat = { readonly kind: "json-object" } | { readonly kind: "json-schema"; readonly schema: unknown };

/** As the sampler takes it, but for the map, which is sent as pairs. */
export interface SamplingFields extends Omit<SamplingOptions, "logitBias"> {
  readonly logitBias: readonly (readonly [number, number])[];
}

/** One prompt and how to go on. */
export interface GenerateTask {
  readonly prompt: PromptSource;
  /** null: as many as the context leaves. */
  readonly maxTokens: number | null;
  readonly sampling: SamplingFields;
  readonly seed: number;
  readonly n: number;
  readonly stop: readonly string[];
  readonly stopIds: readonly number[];
  readonly ignoreEnd: boolean;
  readonly keepSpecialTokens: boolean;
  /** null: none. */
  readonly logprobs: number | null;
  readonly promptLogprobs: number | null;
  /** Send the prompt's text back. */
  readonly echo: boolean;
  readonly format: OutputFormat | null;
}

/** A token as text. */
export interface TokenText {
  readonly id: number;
  /** Its text; U+FFFD stands for bytes that are no UTF-8 by themselves. */
  readonly text: string;
  readonly bytes: readonly number[];
}
export interface TokenWithLogprob extends TokenText {
  readonly logprob: number;
}
export interface TokenLogprob extends TokenWithLogprob {
  /** The most probable, descending. */
  readonly top: readonly TokenWithLogprob[];
}

export interface TaskUsage {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly generatedTokens: number;
}

/** What becomes of a task, in order. The last event is `end` or `failed`. */
export type TaskEvent =
  /** The prompt is encoded, within limits and queued. `prompt` where `echo` asked for it. */
  | {
      readonly type: "accepted";
      readonly promptTokens: number;
      readonly prompt: { readonly text: string; readonly tokens: readonly TokenText[] } | null;
    }
  /** Entry i is of prompt token i + 1. */
  | { readonly type: "prompt"; readonly logprobs: readonly TokenLogprob[] }
  | { readonly type: "token"; readonly choice: number; readonly text: string; readonly logprobs: TokenLogprob | null }
  | {
      readonly type: "finish";
      readonly choice: number;
      readonly reason: "stop" | "length" | "aborted" | "error";
      readonly text: string;
      /** What ended it, where that is a stop string or id. */
      readonly stoppedBy: string | number | null;
      readonly error: ErrorData | null;
    }
  | { readonly type: "end"; readonly usage: TaskUsage }
  | { readonly type: "failed"; readonly error: ErrorData };

/** Requests with one answer. */
export type Call =
  | { readonly method: "tokenize"; readonly prompt: PromptSource; readonly withTexts: boolean }
  | { readonly method: "detokenize"; readonly ids: readonly number[]; readonly skipSpecialTokens: boolean }
  | { readonly method: "embed"; readonly prompt: PromptSource }
  | { readonly method: "experts"; readonly action: "start" | "stop" | "dump" };

export interface ExpertRecord {
  readonly recording: boolean;
  /** One entry a layer with experts: tokens that each expert got while recording. */
  readonly layers: readonly { readonly layer: number; readonly tokens: readonly number[]; readonly imbalance: number }[];
}
export interface CallResults {
  readonly tokenize: { readonly ids: readonly number[]; readonly texts: readonly string[] | null };
  readonly detokenize: { readonly text: string };
  readonly embed: { readonly embedding: Float32Array; readonly promptTokens: number };
  readonly experts: ExpertRecord;
}

/** The engine's counters, as the main thread last heard of them. */
export interface EngineStats extends ServingStats {
  /** Bytes of tensors that are alive. */
  readonly liveBytes: number;
}

export type ToEngine =
  | { readonly type: "generate"; readonly id: number; readonly task: GenerateTask }
  | { readonly type: "abort"; readonly id: number }
  | { readonly type: "call"; readonly id: number; readonly call: Call }
  | { readonly type: "shutdown" };

export type FromEngine =
  | { readonly type: "ready"; readonly info: ModelInfo }
  /** All that happened in one step. */
  | { readonly type: "events"; readonly events: readonly { readonly id: number; readonly event: TaskEvent }[] }
  | { readonly type: "stats"; readonly stats: EngineStats; readonly experts: readonly (readonly [number, readonly number[]])[] }
  | { readonly type: "answer"; readonly id: number; readonly value: CallResults[keyof CallResults] }
  | { readonly type: "failed"; readonly id: number; readonly error: ErrorData }
  /** A bug that did not end the engine. */
  | { readonly type: "trouble"; readonly message: string }
  /** The engine is gone. `exitCode` as of the command. */
  | { readonly type: "fatal"; readonly message: string; readonly exitCode: number };
