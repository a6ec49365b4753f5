/**
 * What a probe text shows of an upcycled model: how far its logits are from the dense model's, where its routers send the
 * tokens, and which experts nothing tells apart. And the other use of a dense model's hidden states: router rows from prompts.
 * Both run layer by layer from the files (`streamed.ts`), in f32.
 */
import { createHash } from "node:crypto";
import type { ModelConfig } from "../config/model.ts";
import { huggingFacePieces, openModelSource, parameterSpecs, type ModelSource } from "../model/index.ts";
import type { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { moeLayers } from "./recipe.ts";
import { streamedForward } from "./streamed.ts";

/** One layer's routing of the probe text. */
export interface LayerRouting {
  readonly layer: number;
  /** Tokens that reach each expert. */
  readonly load: readonly number[];
  /** Mean weight of the first choice. */
  readonly meanTopWeight: number;
  /** Experts that differ from each other in their weights. */
  readonly numDistinctExperts: number;
  /** Groups of experts with equal weights and equal router rows: training can never tell them apart but by ties. */
  readonly symmetricExperts: readonly (readonly number[])[];
}

export interface Probe {
  readonly numTokens: number;
  readonly computeDtype: "f32";
  /** Largest absolute difference of logits over the largest absolute logit of the dense model. Infinite where one is not a number. */
  readonly maxOutputGap: number;
  /** Mean absolute difference over the same. */
  readonly meanOutputGap: number;
  readonly routing: readonly LayerRouting[];
}

/**
 * Compares the model in `moePath` with the dense one on `ids`, in f32, and records its routing. Throws `shape` where the
 * vocabularies differ, `unsupported` for routers beyond those that upcycling writes.
 */
export function probeUpcycled(engine: Engine, densePath: string, moePath: string, ids: ArrayLike<number>): Probe {
  using dense = openModelSource(densePath);
  using moe = openModelSource(moePath);
  if (dense.config.vocabSize !== moe.config.vocabSize) {
    throw new MoeError("shape", `upcycle probe: vocabularies of ${dense.config.vocabSize} and ${moe.config.vocabSize}`);
  }
  const expected: Float32Array[] = [];
  streamedForward(engine, dense, [ids], {}, (logits) => expected.push(logits));
  let [largest, maxDifference, sum, count] = [0, 0, 0, 0];
  const loads = new Map<number, { load: number[]; meanTopWeight: number }>();
  const K = moe.config.moe?.topK ?? 1;
  streamedForward(
    engine,
    moe,
    [ids],
    {
      onRouting: (layer, { indices, weights }) => {
        const load = new Array<number>(moe.config.moe?.numExperts ?? 0).fill(0);
        for (const e of indices) load[e] = (load[e] ?? 0) + 1;
        const top = weights.filter((_, slot) => slot % K === 0);
        loads.set(layer, { load, meanTopWeight: top.reduce((a, b) => a + b, 0) / top.length });
      },
    },
    (logits) => {
      const reference = expected.shift() ?? new Float32Array(0);
      for (let i = 0; i < logits.length; i++) {
        const difference = Math.abs((reference[i] ?? Number.NaN) - (logits[i] ?? Number.NaN));
        largest = Math.max(largest, Math.abs(reference[i] ?? 0));
        // A NaN must not pass as "no difference".
        maxDifference = Math.max(maxDifference, Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference);
        sum += difference;
      }
      count += logits.length;
    },
  );
  return {
    numTokens: ids.length,
    computeDtype: "f32",
    maxOutputGap: maxDifference / largest,
    meanOutputGap: sum / count / largest,
    routing: moeLayers(moe.config).map((layer) => ({
      layer,
      ...(loads.get(layer) ?? { load: [], meanTopWeight: Number.NaN }),
      ...sameness(moe, layer),
    })),
  };
}

/** Which experts of a layer are equal, by hashes of their weights and router rows. */
function sameness(source: ModelSource, layer: number): Pick<LayerRouting, "numDistinctExperts" | "symmetricExperts"> {
  const E = source.config.moe?.numExperts ?? 0;
  const experts = hashes(source, source.config, `layers.${layer}.moe.experts.`, E);
  const H = source.config.hiddenSize;
  const router = parameterSpecs(source.config, "f32").find(({ name }) => name === `layers.${layer}.moe.router.weight`);
  const [rows] = router === undefined ? [] : huggingFacePieces(router, source.layout, source.config);
  const groups = new Map<string, number[]>();
  const row = new Float32Array(H);
  for (const [e, hash] of experts.entries()) {
    if (rows !== undefined) source.readFloat32(rows.name, row, e * H);
    const key = `${hash} ${createHash("sha256").update(row).digest("hex")}`;
    groups.set(key, [...(groups.get(key) ?? []), e]);
  }
  return { numDistinctExperts: new Set(experts).size, symmetricExperts: [...groups.values()].filter((group) => group.length > 1) };
}
function hashes(source: ModelSource, config: ModelConfig, prefix: string, numExperts: number): string[] {
  const result = Array.from({ length: numExperts }, () => createHash("sha256"));
  const chunk = new Float32Array(1 << 20);
  for (const spec of parameterSpecs(config, "f32").filter(({ name }) => name.startsWith(prefix))) {
    const pieces = huggingFacePieces(spec, source.layout, config);
    for (const [e, { name, fileOffset, numElements }] of pieces.entries()) {
      for (let at = 0; at < numElements; at += chunk.length) {
        const values = chunk.subarray(0, Math.min(chunk.length, numElements - at));
        source.readFloat32(name, values, fileOffset + at);
        result[e]?.update(values);
      }
    }
  }
  return result.map((hash) => hash.digest("hex"));
}

/**
 * Router rows from prompts, one list of prompts (as token ids) a copy of the network: the mean over the prompts of the mean over
 * each prompt's tokens of what enters the layer's feed-forward network; less the mean over the copies, which adds the same to
 * every logit and so changes no probability; scaled to length `norm`. Prompts run as separate documents without padding, so no
 * token sees, and no mean counts, anything but its own prompt. Throws `configuration` for an empty list, and where lists do not differ.
 */
export function promptRouterRows(
  engine: Engine,
  densePath: string,
  prompts: readonly (readonly ArrayLike<number>[])[],
  norm: number,
): (layer: number) => Float32Array {
  const empty = prompts.findIndex((list) => list.length === 0);
  if (empty >= 0) throw new MoeError("configuration", `upcycle: router.prompts: expected at least one prompt in list ${empty}, got none`);
  using dense = openModelSource(densePath);
  const H = dense.config.hiddenSize;
  const documents = prompts.flat();
  const byLayer = new Map<number, Float32Array>();
  streamedForward(
    engine,
    dense,
    documents,
    {
      onFeedForwardInput: (layer, x) => {
        const means = new Float64Array(prompts.length * H);
        let t = 0;
        for (const [copy, list] of prompts.entries()) {
          for (const ids of list) {
            for (let i = 0; i < ids.length; i++, t++) {
              for (let h = 0; h < H; h++) means[copy * H + h] = (means[copy * H + h] ?? 0) + (x[t * H + h] ?? 0) / ids.length / list.length;
            }
          }
        }
        byLayer.set(layer, centred(means, prompts.length, H, norm));
      },
    },
    null,
  );
  return (layer) => {
    const rows = byLayer.get(layer);
    if (rows === undefined) throw new MoeError("internal", `upcycle: no router rows for layer ${layer}`);
    return rows;
  };
}

function centred(means: Float64Array, numRows: number, H: number, norm: number): Float32Array {
  const rows = new Float32Array(numRows * H);
  const center = Array.from({ length: H }, (_, h) => {
    let sum = 0;
    for (let row = 0; row < numRows; row++) sum += means[row * H + h] ?? 0;
    return sum / numRows;
  });
  for (let row = 0; row < numRows; row++) {
    const difference = center.map((c, h) => (means[row * H + h] ?? 0) - c);
    const length = Math.hypot(...difference);
    const size = Math.hypot(...center);
    if (numRows > 1 && length <= 1e-6 * size) {
      throw new MoeError("configuration", `upcycle: router.prompts: list ${row} gives the mean of all lists: the prompts do not differ`);
    }
    for (let h = 0; h < H; h++) rows[row * H + h] = length === 0 ? 0 : ((difference[h] ?? 0) * norm) / length;
  }
  return rows;
}
