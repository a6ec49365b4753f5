/**
 * How alike the experts of a layer are: the cosine of each pair, of their weights and of what they make of the same tokens.
 *   weights: expert e is one vector, its gate, up and down matrices one behind the other;
 *   outputs: expert e is one vector, its outputs on all tokens of a probe batch (each expert gets all of them, whatever the
 *            router says), one behind the other.
 * Experts copied from one dense model begin at 1; experts from scratch near 0 (Skywork-MoE's report plots such a number without
 * its formula). Products run in the engine's kernels: a layer is a few Gram matrices.
 *
 * Legend: E experts, N elements of one expert, T tokens, H hidden.
 */
import { dtypeCodes } from "../backend/kernels.ts";
import type { TokenBatch } from "../data/dataset.ts";
import type { Batch, Decoder } from "../model/index.ts";
import type { Experts } from "../nn/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { toModelBatch } from "./batch.ts";

export interface Similarity {
  /** Mean over the pairs of different experts; 1 for a single expert. */
  readonly mean: number;
  /** E rows of E cosines, symmetric, 1 on the diagonal. A vector of zeros is like none: 0, on the diagonal too. */
  readonly matrix: readonly (readonly number[])[];
}

export interface LayerSimilarity {
  readonly layer: number;
  readonly weights: Similarity;
  /** On the probe batch, each layer with the inputs that it really gets there. */
  readonly outputs: Similarity;
  /** Gate probabilities of the probe's tokens, each token's sorted with the largest first, mean over tokens: E numbers. */
  readonly gates: readonly number[];
}

/** Of every layer with experts, ascending. Dropless, without noise, off any tape. */
export function expertSimilarity(model: Decoder, probe: TokenBatch): LayerSimilarity[] {
  const { engine } = model;
  return engine.withTape(null, () => engine.scope(() => stageSimilarity(model, toModelBatch(engine, probe).batch).layers));
}

/** Of the layers of a stage, with the hidden states [T, H] that it gives for those that came in. In the caller's scope. */
export function stageSimilarity(model: Decoder, batch: Batch, hidden?: Tensor): { layers: LayerSimilarity[]; hidden_TH: Tensor } {
  const alike: Omit<LayerSimilarity, "gates">[] = [];
  const observe = (layer: number, experts: Experts, x_TH: Tensor): void => {
    alike.push({ layer, weights: weightSimilarity(experts), outputs: outputSimilarity(experts, x_TH) });
  };
  const { routing, hidden_TH } = model.forwardHidden(batch, { routing: { observe }, ...(hidden === undefined ? {} : { hidden }) });
  const gates = routing.map(({ probs_TE }) => sortedGates(probs_TE.toFloat32Array(), probs_TE.dim(1)));
  return { layers: alike.map((layer, index) => ({ ...layer, gates: gates[index] ?? [] })), hidden_TH };
}

/** E means over tokens: of the largest probability of a token, of the second largest, and so on. From probabilities [T, E]. */
export function sortedGates(probs_TE: Float32Array, E: number): number[] {
  const T = probs_TE.length / E;
  const sums = new Float64Array(E);
  for (let t = 0; t < T; t++) {
    // A typed array sorts by number, ascending.
    const token = probs_TE.slice(t * E, (t + 1) * E).sort();
    for (let rank = 0; rank < E; rank++) sums[rank] = (sums[rank] ?? 0) + (token[E - 1 - rank] ?? 0);
  }
  return Array.from(sums, (sum) => sum / Math.max(1, T));
}

/** Of the experts' weights. */
export function weightSimilarity({ gate_EFH, up_EFH, down_EHF }: Experts): Similarity {
  return cosines([gate_EFH, up_EFH, down_EHF].map(gram));
}

/** Elements of one activation, of all experts and the tokens of a part, that are in memory at once. */
const defaultElements = 1 << 24;

/** Of the experts' outputs for tokens x [T, H] in the experts' dtype, a part of the tokens at a time. Records on no tape. */
export function outputSimilarity(experts: Experts, x_TH: Tensor, maxElements = defaultElements): Similarity {
  const { engine } = x_TH;
  const T = x_TH.dim(0);
  const width = experts.numExperts * Math.max(x_TH.dim(1), experts.gate_EFH.dim(1));
  const chunk = Math.max(1, Math.floor(maxElements / width));
  const grams: Float64Array[] = [];
  for (let from = 0; from < T; from += chunk) {
    const part = (): Float64Array => gramOfOutputs(experts, x_TH.rows(from, Math.min(T, from + chunk)));
    grams.push(engine.withTape(null, () => engine.scope(part)));
  }
  return cosines(grams);
}

function gramOfOutputs(experts: Experts, x_TH: Tensor): Float64Array {
  const { engine } = x_TH;
  const { numExperts: E } = experts;
  const [T, H] = [x_TH.dim(0), x_TH.dim(1)];
  const rows = engine.empty([E * T, H], x_TH.dtype);
  const tokens = Int32Array.from({ length: E * T }, (_, row) => row % T);
  const index = engine.from(tokens, [E * T], "i32");
  engine.backend.kernels.gatherRows(rows.ptr, x_TH.ptr, index.ptr, E * T, x_TH.byteLength / T);
  const offsets = Int32Array.from({ length: E + 1 }, (_, e) => e * T);
  return gram(experts.forward(rows, engine.from(offsets, [E + 1], "i32")).view(E, T, H));
}

/** Elements of an expert that are one chain of f32 additions: a sum of millions of squares would stop growing long before its end. */
const chainElements = 1 << 14;

/** [E, E] of x [E, ...]: inner products of the experts, each flattened; f32 chains, added up in f64. */
function gram(x: Tensor): Float64Array {
  const { engine } = x;
  const { kernels } = engine.backend;
  const E = x.dim(0);
  const [N, bytes, code] = [x.size / E, x.byteLength / x.size, dtypeCodes[x.dtype]];
  const sums = new Float64Array(E * E);
  using products = engine.detached([E, E], "f32");
  using piece = engine.detached([E, Math.min(N, chainElements)], x.dtype);
  for (let from = 0; from < N; from += chainElements) {
    const n = Math.min(chainElements, N - from);
    kernels.copyRows(piece.ptr, x.ptr + from * bytes, E, n * bytes, n * bytes, N * bytes);
    kernels.linearForward(products.ptr, piece.ptr, piece.ptr, 0, E, E, n, code, code, dtypeCodes.f32);
    for (const [i, product] of products.toFloat32Array().entries()) sums[i] = (sums[i] ?? 0) + product;
  }
  return sums;
}

/** Cosines from Gram matrices, which are added up: those of vectors that come in parts. */
function cosines(grams: readonly Float64Array[]): Similarity {
  const size = grams[0]?.length ?? 0;
  const E = Math.round(Math.sqrt(size));
  const sums = Array.from({ length: size }, (_, i) => grams.reduce((sum, values) => sum + (values[i] ?? 0), 0));
  const product = (i: number, j: number): number => sums[i * E + j] ?? 0;
  const cosine = (i: number, j: number): number => {
    const norms = Math.sqrt(product(i, i)) * Math.sqrt(product(j, j));
    // The average of both halves: a kernel may add them up in another order.
    return norms === 0 ? 0 : Math.max(-1, Math.min(1, (product(i, j) + product(j, i)) / 2 / norms));
  };
  const matrix = Array.from({ length: E }, (_, i) => Array.from({ length: E }, (__, j) => cosine(i, j)));
  const pairs = matrix.flatMap((row, i) => row.slice(i + 1));
  return { mean: pairs.length === 0 ? 1 : pairs.reduce((a, b) => a + b, 0) / pairs.length, matrix };
}
