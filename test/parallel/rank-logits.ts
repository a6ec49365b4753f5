/** What the tensor-parallel tests run, on one rank and on many: logits with and without a cache, choices of experts, bytes held. */
import { batchOfDocuments, KvCache, type Decoder, type ModelDType } from "../../src/model/index.ts";
import type { RankShare } from "../../src/parallel/index.ts";

export interface Job {
  readonly path: string;
  readonly dtype: ModelDType;
  readonly mapped: boolean;
  readonly shares: readonly RankShare[];
  readonly sequences: readonly (readonly number[])[];
  readonly quantized?: "keep" | "dequantize";
}
export interface JobResult {
  /** Of all tokens of all sequences at once. */
  readonly logits: Float32Array;
  /** Of the first sequence through a cache, in parts. */
  readonly cached: Float32Array;
  /** Chosen experts of all layers with experts. */
  readonly choices: readonly Int32Array[];
  readonly weightBytes: number;
  /** Of a cache of `cacheTokens`. */
  readonly cacheBytes: number;
  /** Live in the backend between loading and the first pass: 0 for what is mapped. */
  readonly liveBytes: number;
}
export const cacheTokens = 40;

/** Logits of all tokens, and those of the first sequence read in parts of 3, 1, 1, ... tokens. */
export function runJob(model: Decoder, sequences: Job["sequences"]): Pick<JobResult, "logits" | "cached" | "choices" | "cacheBytes"> {
  const { engine } = model;
  const { logits, choices } = engine.scope(() => {
    const { hidden_TH, routing } = model.forwardHidden(batchOfDocuments(engine, sequences, model.config));
    return { logits: model.logits(hidden_TH).toFloat32Array(), choices: routing.map(({ indices_TK }) => indices_TK.toInt32Array()) };
  });
  const before = engine.backend.liveBytes;
  using cache = new KvCache(engine, model.cacheConfig, { numSequences: 1, capacity: cacheTokens, dtype: model.dtype });
  const cacheBytes = engine.backend.liveBytes - before;
  const [ids = []] = sequences;
  const parts: Float32Array[] = [];
  for (let at = 0; at < ids.length; at += at === 0 ? 3 : 1) {
    const part = ids.slice(at, at === 0 ? 3 : at + 1);
    parts.push(
      engine.scope(() => model.logits(model.forwardHidden(cache.extend([{ slot: 0, ids: part }]), { cache }).hidden_TH).toFloat32Array()),
    );
  }
  return { logits, choices, cacheBytes, cached: Float32Array.from(parts.flatMap((part) => [...part])) };
}

/** Bytes of parameters, scales included. */
export function weightBytes(model: Decoder): number {
  return [...model.parameters.values()].reduce((sum, { byteLength, scales }) => sum + byteLength + (scales?.values.byteLength ?? 0), 0);
}
