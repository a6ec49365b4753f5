/**
 * Who is where in a layout: from a rank's number to its coordinates, and the groups of ranks that do things together. Numbers only; a group becomes
 * a communicator by `Communicator.split`.
 *
 * Ranks are numbered with tp fastest, then dp, then the pipeline: rank = (stage * dp + d) * tp + t, so that ranks that speak most are neighbours. The
 * n = dp * tp ranks of a pipeline rank are also numbered (replica * ep + e) * etp + c: the ranks of one replica of the experts (a *block* of ep * etp ranks)
 * are neighbours too.
 *
 * Axes, each a partition of all ranks into groups:
 *   tp     same sequences, parts of the heads                        sums and gathers of activations
 *   dp     same part of the model, other sequences                   gradients and ZeRO of everything but experts
 *   stage  all ranks of a pipeline rank                              gradients of what is whole on all of them, under sequence parallelism
 *   block  together one replica of the experts                      exchange of tokens
 *   edp    same experts (the same columns of them), other tokens     gradients and ZeRO of experts
 *   pp     same place, other layers                                  activations between stages
 */
import type { Layout } from "../config/layout.ts";

export const axes = ["tp", "dp", "stage", "block", "edp", "pp"] as const;
export type Axis = (typeof axes)[number];

export interface Coordinates {
  readonly pp: number;
  readonly dp: number;
  readonly tp: number;
  /** Replica of the experts, place among the ranks that they are spread over, place among those that an expert's columns are cut over. */
  readonly edp: number;
  readonly ep: number;
  readonly etp: number;
}

export type MeshSizes = Pick<Layout, "pp" | "dp" | "tp" | "ep" | "etp">;

export function coordinatesOf(rank: number, { dp, tp, ep, etp }: MeshSizes): Coordinates {
  const inStage = rank % (dp * tp);
  return {
    pp: Math.floor(rank / (dp * tp)),
    dp: Math.floor(inStage / tp),
    tp: inStage % tp,
    edp: Math.floor(inStage / (ep * etp)),
    ep: Math.floor(inStage / etp) % ep,
    etp: inStage % etp,
  };
}

/** The groups of an axis, each in ascending order: every rank is in exactly one. */
export function groupsOf(axis: Axis, sizes: MeshSizes): number[][] {
  const { pp, dp, tp, ep, etp } = sizes;
  const keyOf = (rank: number): number => {
    const at = coordinatesOf(rank, sizes);
    switch (axis) {
      case "tp":
        return at.pp * dp + at.dp;
      case "dp":
        return at.pp * tp + at.tp;
      case "stage":
        return at.pp;
      case "block":
        return at.pp * dp * tp + at.edp;
      case "edp":
        return (at.pp * ep + at.ep) * etp + at.etp;
      case "pp":
        return rank % (dp * tp);
      default:
        return axis satisfies never;
    }
  };
  const groups = new Map<number, number[]>();
  for (let rank = 0; rank < pp * dp * tp; rank++) {
    const key = keyOf(rank);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [rank]);
    else group.push(rank);
  }
  return [...groups.values()];
}
