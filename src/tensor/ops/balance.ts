/**
 * Losses that keep the experts of a MoE layer in balance and its logits small, over the router's probabilities g [T, E].
 *
 * - `balanceLoss`: sum over experts of (1/E - mean over tokens of g_ij)^2 (Skywork-MoE, arXiv 2406.06563, equation 4).
 * - `switchLoss`: E * sum over experts of f_j * P_j, f the fraction of assignments and P the mean probability
 *   (Switch Transformer, arXiv 2101.03961, equations 4 to 6). Its scale is another: coefficients do not carry over.
 * - `sequenceLoss`: the same form over each sequence by itself (DeepSeek-V3, arXiv 2412.19437, equations 17 to 20).
 * - `zLoss`: sum over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, equation 5).
 *
 * The first three are not linear in the batch. Where the result must not depend on how a batch is cut into micro-batches and
 * ranks, the tokens are given as balance groups (or sequences) that no cut splits, and the losses of the groups are added: who
 * wants their mean over a global batch divides by its number of groups, which is the same everywhere.
 *
 * Legend: T tokens, E experts, K choices, G groups.
 */
import { dtypeCodes } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { expectGroupOffsets, expectTensor, shapeError } from "./check.ts";

export interface BalanceOptions {
  /** G + 1 ascending row numbers from 0 to T; group g is rows groupOffsets[g]..groupOffsets[g+1]-1. Default: one group. */
  readonly groupOffsets?: readonly number[] | undefined;
  /** i32 [T]: 0 for tokens that take no part (their rows of g are 0): means run over the others. */
  readonly valid?: Tensor | null | undefined;
}

/** f32[1]: equation 4 for probs [T, E] f32, added up over the groups. A group without tokens adds 0. Throws `shape`. */
export function balanceLoss(probs: Tensor, options: BalanceOptions = {}): Tensor {
  expectTensor("balanceLoss", "probs", probs, [null, null], ["f32"]);
  const E = probs.dim(1);
  return meanProbabilityLoss("balanceLoss", probs, options, (mean) => {
    const excess = mean.map((value) => value - 1 / E);
    return { loss: excess.reduce((sum, value) => sum + value * value, 0), dMean: excess.map((value) => 2 * value) };
  });
}

/**
 * f32[1]: the Switch loss for probs [T, E] f32 and counts i32 [G, E]: assignments of each expert before dropping, as
 * `dispatch` gives them. f_j is counts_j over their sum, so that a perfect balance gives 1 for every top-k. Throws `shape`.
 */
export function switchLoss(probs: Tensor, counts: Tensor, options: BalanceOptions = {}): Tensor {
  expectTensor("switchLoss", "probs", probs, [null, null], ["f32"]);
  const E = probs.dim(1);
  const numGroups = options.groupOffsets === undefined ? 1 : options.groupOffsets.length - 1;
  if (counts.size !== numGroups * E || counts.dtype !== "i32") throw shapeError("switchLoss", "counts", `[${numGroups}, ${E}] i32`, counts);
  return lossOfCounts("switchLoss", probs, counts.toInt32Array(), options);
}

/**
 * f32[1]: the Switch form over each sequence, added up over the sequences, for probs [T, E] f32 and indices i32 [T, K] of the
 * router. `groupOffsets` are the sequences. Throws `shape`.
 */
export function sequenceLoss(probs: Tensor, indices: Tensor, options: BalanceOptions = {}): Tensor {
  expectTensor("sequenceLoss", "probs", probs, [null, null], ["f32"]);
  const [T, E] = [probs.dim(0), probs.dim(1)];
  expectTensor("sequenceLoss", "indices", indices, [T, null], ["i32"]);
  const groupOffsets = options.groupOffsets ?? [0, T];
  expectGroupOffsets("sequenceLoss", groupOffsets, T);
  return lossOfCounts("sequenceLoss", probs, countsOf(indices, groupOffsets, E), options);
}

/** Assignments of each expert in each group: [G, E]. */
function countsOf(indices: Tensor, groupOffsets: readonly number[], E: number): Int32Array {
  const K = indices.dim(1);
  const chosen = indices.toInt32Array();
  const counts = new Int32Array((groupOffsets.length - 1) * E);
  for (let g = 0; g + 1 < groupOffsets.length; g++) {
    const end = (groupOffsets[g + 1] ?? 0) * K;
    for (let slot = (groupOffsets[g] ?? 0) * K; slot < end; slot++) {
      const e = chosen[slot] ?? -1;
      if (e >= 0) counts[g * E + e] = (counts[g * E + e] ?? 0) + 1;
    }
  }
  return counts;
}

function lossOfCounts(operation: string, probs: Tensor, counts: Int32Array, options: BalanceOptions): Tensor {
  const E = probs.dim(1);
  return meanProbabilityLoss(operation, probs, options, (mean, g) => {
    const ofGroup = Array.from(counts.subarray(g * E, (g + 1) * E));
    const total = Math.max(
      1,
      ofGroup.reduce((sum, count) => sum + count, 0),
    );
    const dMean = ofGroup.map((count) => (E * count) / total);
    return { loss: dMean.reduce((sum, factor, j) => sum + factor * (mean[j] ?? 0), 0), dMean };
  });
}

interface Group {
  readonly start: number;
  readonly size: number;
  readonly numValid: number;
  /** Gradient of the loss with respect to the mean probability of each expert. */
  readonly dMean: readonly number[];
}

/**
 * A loss that sees the probabilities only through their mean over each group: every row of a group has the same gradient
 * (also rows of tokens that take no part: the router's backward passes it on to nothing).
 */
function meanProbabilityLoss(
  operation: string,
  probs: Tensor,
  { groupOffsets = [0, probs.dim(0)], valid = null }: BalanceOptions,
  ofMean: (mean: readonly number[], group: number) => { loss: number; dMean: readonly number[] },
): Tensor {
  const [T, E] = [probs.dim(0), probs.dim(1)];
  expectGroupOffsets(operation, groupOffsets, T);
  if (valid !== null) expectTensor(operation, "valid", valid, [T], ["i32"]);
  const mask = valid?.toInt32Array() ?? null;
  const { engine } = probs;
  const groups: Group[] = [];
  let loss = 0;
  for (const [g, start] of groupOffsets.slice(0, -1).entries()) {
    const size = (groupOffsets[g + 1] ?? T) - start;
    const numValid = mask === null ? size : mask.subarray(start, start + size).reduce((n, value) => n + Number(value !== 0), 0);
    if (numValid === 0) continue;
    const term = ofMean(columnMeans(probs, start, size, numValid), g);
    loss += term.loss;
    groups.push({ start, size, numValid, dMean: term.dMean });
  }
  const out = engine.from([loss], [1], "f32");
  const { tape } = engine;
  tape?.record([probs], out, [], (dOut) => {
    const upstream = dOut.item();
    tape.writeGrad(probs, { dtype: "f32", addOnly: true }, (ptr) => {
      for (const { start, size, numValid, dMean } of groups) {
        const row = engine.from(
          dMean.map((value) => (upstream * value) / numValid),
          [E],
          "f32",
        );
        engine.backend.kernels.addBias(ptr + 4 * start * E, row.ptr, size, E, dtypeCodes.f32);
      }
    });
  });
  return out;
}

function columnMeans(probs: Tensor, start: number, size: number, numValid: number): number[] {
  const { engine } = probs;
  const E = probs.dim(1);
  using sums = engine.detached([E], "f32");
  engine.backend.kernels.linearBackwardBias(sums.ptr, probs.ptr + 4 * start * E, size, E, dtypeCodes.f32, 0);
  return Array.from(sums.toFloat32Array(), (sum) => sum / numValid);
}

/**
 * f32[1]: scale * sum over tokens of logsumexp(logits)^2 for the router's raw logits [T, E] f32. `valid` (i32 [T]) leaves tokens
 * out. The mean over a global batch is a scale of 1 / (its tokens). Throws `shape`.
 */
export function zLoss(logits: Tensor, { scale = 1, valid = null }: { scale?: number; valid?: Tensor | null } = {}): Tensor {
  expectTensor("zLoss", "logits", logits, [null, null], ["f32"]);
  const [T, E] = [logits.dim(0), logits.dim(1)];
  if (valid !== null) expectTensor("zLoss", "valid", valid, [T], ["i32"]);
  const { engine } = logits;
  const { kernels } = engine.backend;
  const sum = readF64(logits, 1, (ptr) => {
    kernels.routerZLoss(ptr, 0, logits.ptr, valid?.ptr ?? 0, T, E, 0);
  });
  const out = engine.from([scale * (sum[0] ?? 0)], [1], "f32");
  const { tape } = engine;
  tape?.record([logits], out, [logits, valid], (dOut, [saved, savedValid]) => {
    const dLogits = engine.empty([T, E], "f32");
    kernels.routerZLoss(0, dLogits.ptr, saved.ptr, savedValid?.ptr ?? 0, T, E, scale * dOut.item());
    tape.addGrad(logits, dLogits);
  });
  return out;
}

/** Sums over tokens: divide by the tokens that took part for means. */
export interface RouterStatistics {
  /** Largest over second-largest probability. */
  readonly max1OverMax2: number;
  /** Second-largest over third-largest. */
  readonly max2OverMax3: number;
  /** Entropy of a token's probabilities, nats. */
  readonly gateEntropy: number;
}

/**
 * How decided the router is, from its probs [T, E] f32, in f64 sums. A denominator below 1e-20, or of an expert that does
 * not exist, is taken as 1e-20 (so of scores that are 0 outside the chosen, like softmaxOfTopK's, only the entropy says
 * something when K is below 3). Rows of zeros (tokens that take no part) add nothing. Throws `shape`.
 */
export function routerStatistics(probs: Tensor): RouterStatistics {
  expectTensor("routerStatistics", "probs", probs, [null, null], ["f32"]);
  const [max1OverMax2 = 0, max2OverMax3 = 0, gateEntropy = 0] = readF64(probs, 3, (ptr) => {
    probs.engine.backend.kernels.routerStatistics(ptr, probs.ptr, probs.dim(0), probs.dim(1));
  });
  return { max1OverMax2, max2OverMax3, gateEntropy };
}

/** What a kernel writes into memory for `count` f64. */
function readF64({ engine }: Tensor, count: number, write: (ptr: number) => void): Float64Array {
  using room = engine.detached([2 * count], "f32");
  write(room.ptr);
  const values = new Float64Array(count);
  engine.backend.read(values, room.ptr);
  return values;
}
