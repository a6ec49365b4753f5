/**
 * Load-balancing losses of a MoE layer over the router's probabilities g [T, E].
 *
 * - `balanceLoss`: sum over experts of (1/E - mean over tokens of g_ij)^2 (Skywork-MoE, arXiv 2406.06563, equation 4).
 * - `switchLoss`: E * sum over experts of f_j * P_j, f the fraction of assignments and P the mean probability
 *   (Switch Transformer, arXiv 2101.03961, equations 4 to 6). Its scale is another: coefficients do not carry over.
 *
 * Neither is linear in the batch. Where the result must not depend on how a batch is cut into micro-batches and ranks, the
 * tokens are given as balance groups that no cut splits, and the losses of the groups are added.
 *
 * Legend: T tokens, E experts, G groups.
 */
import { dtypeCodes } from "../../backend/kernels.ts";
import type { Tensor } from "../tensor.ts";
import { expectTensor, shapeError } from "./check.ts";

export interface BalanceOptions {
  /** G + 1 ascending row numbers from 0 to T; group g is rows groupOffsets[g]..groupOffsets[g+1]-1. Default: one group. */
  readonly groupOffsets?: readonly number[];
}

/** f32[1]: equation 4 for probs [T, E] f32, added up over the groups. An empty group adds 0. Throws `shape`. */
export function balanceLoss(probs: Tensor, { groupOffsets }: BalanceOptions = {}): Tensor {
  expectTensor("balanceLoss", "probs", probs, [null, null], ["f32"]);
  const E = probs.dim(1);
  return meanProbabilityLoss("balanceLoss", probs, groupOffsets, (mean) => {
    const excess = mean.map((value) => value - 1 / E);
    return { loss: excess.reduce((sum, value) => sum + value * value, 0), dMean: excess.map((value) => 2 * value) };
  });
}

/**
 * f32[1]: the Switch loss for probs [T, E] f32 and counts i32 [E] (with groups [G, E]): assignments of each expert before
 * dropping, as `dispatch` gives them. f_j is counts_j over their sum, so that a perfect balance gives 1 for every top-k. Throws `shape`.
 */
export function switchLoss(probs: Tensor, counts: Tensor, { groupOffsets }: BalanceOptions = {}): Tensor {
  expectTensor("switchLoss", "probs", probs, [null, null], ["f32"]);
  const E = probs.dim(1);
  const numGroups = groupOffsets === undefined ? 1 : groupOffsets.length - 1;
  if (counts.size !== numGroups * E || counts.dtype !== "i32") throw shapeError("switchLoss", "counts", `[${numGroups}, ${E}] i32`, counts);
  const assigned = counts.toInt32Array();
  return meanProbabilityLoss("switchLoss", probs, groupOffsets, (mean, g) => {
    const ofGroup = Array.from(assigned.subarray(g * E, (g + 1) * E));
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
  /** Gradient of the loss with respect to the mean probability of each expert. */
  readonly dMean: readonly number[];
}

/** A loss that sees the probabilities only through their mean over each group: every row of a group has the same gradient. */
function meanProbabilityLoss(
  operation: string,
  probs: Tensor,
  groupOffsets: readonly number[] = [0, probs.dim(0)],
  ofMean: (mean: readonly number[], group: number) => { loss: number; dMean: readonly number[] },
): Tensor {
  const [T, E] = [probs.dim(0), probs.dim(1)];
  if (groupOffsets[0] !== 0 || groupOffsets.at(-1) !== T || groupOffsets.some((start, g) => start > (groupOffsets[g + 1] ?? T))) {
    throw shapeError(operation, "groupOffsets", `ascending from 0 to ${T}`, `[${groupOffsets.join(", ")}]`);
  }
  const { engine } = probs;
  const groups: Group[] = [];
  let loss = 0;
  for (const [g, start] of groupOffsets.slice(0, -1).entries()) {
    const size = (groupOffsets[g + 1] ?? T) - start;
    if (size === 0) continue;
    const term = ofMean(columnMeans(probs, start, size), g);
    loss += term.loss;
    groups.push({ start, size, dMean: term.dMean });
  }
  const out = engine.from([loss], [1], "f32");
  const { tape } = engine;
  tape?.record([probs], out, [], (dOut) => {
    const upstream = dOut.item();
    tape.writeGrad(probs, { dtype: "f32", addOnly: true }, (ptr) => {
      for (const { start, size, dMean } of groups) {
        const row = engine.from(
          dMean.map((value) => (upstream * value) / size),
          [E],
          "f32",
        );
        engine.backend.kernels.addBias(ptr + 4 * start * E, row.ptr, size, E, dtypeCodes.f32);
      }
    });
  });
  return out;
}

function columnMeans(probs: Tensor, start: number, size: number): number[] {
  const { engine } = probs;
  const E = probs.dim(1);
  using sums = engine.detached([E], "f32");
  engine.backend.kernels.linearBackwardBias(sums.ptr, probs.ptr + 4 * start * E, size, E, dtypeCodes.f32, 0);
  return Array.from(sums.toFloat32Array(), (sum) => sum / size);
}
