/**
 * What the routers did in one step of the whole global batch: sums over micro-batches, and the metrics that follow from them.
 * Each number's definition, with its formula, is in `docs/metrics.md`.
 *
 * Nothing here depends on how the global batch was cut: counts are integers of whole balance groups, losses are sums over
 * groups, sequences or tokens that are divided once, at the end.
 *
 * Legend: E experts, G balance groups.
 */
import { droppedPerGroup } from "../nn/index.ts";

/** Routing of one layer with experts over one step. Losses are without their coefficients. */
export interface LayerMetrics {
  readonly layer: number;
  /** Assignments beyond capacity over all assignments; in dropless training those beyond the virtual capacity, 0 without one. */
  readonly dropRate: number;
  /** The assignments beyond capacity that `dropRate` is the share of. */
  readonly numDropped: number;
  /** Of the auxiliary loss, in this step. */
  readonly coefficient: number;
  /** Equation 4 of arXiv 2406.06563, mean over balance groups. */
  readonly auxiliaryLoss: number;
  /** Mean over balance groups; null where its coefficient is 0. */
  readonly switchLoss: number | null;
  /** Mean over sequences; null where its coefficient is 0. */
  readonly sequenceLoss: number | null;
  /** Mean over tokens of the squared logsumexp of the logits. */
  readonly zLoss: number;
  /** Mean over tokens of the ratio of the largest gate probability to the second. Null where there is no second. */
  readonly max1OverMax2: number | null;
  /** Of the second to the third. Null where there is no third: with two experts, or two chosen that alone have scores. */
  readonly max2OverMax3: number | null;
  /** Mean over tokens of the entropy of the gate probabilities, nats. */
  readonly gateEntropy: number;
  /** exp(entropy of the load) / E: 1 in perfect balance, 1/E when one expert has all. */
  readonly loadEntropy: number;
  readonly maxOverMeanLoad: number;
  /** Experts without a single assignment in the step. */
  readonly deadExperts: number;
  /** Assignments of each expert before dropping, as a fraction of all: sums to 1. */
  readonly load: readonly number[];
}

/** One micro-batch of one layer. */
export interface MicroRouting {
  /** Its number in the model. */
  readonly layer: number;
  /** [G, E], before dropping. */
  readonly counts: Int32Array;
  /** Tokens of each group that take part. */
  readonly numTokens: readonly number[];
  /** Sum over groups. */
  readonly auxiliaryLoss: number;
  /** Sum over groups. */
  readonly switchLoss: number | null;
  /** Sum over sequences. */
  readonly sequenceLoss: number | null;
  /** Sum over tokens. */
  readonly zLoss: number;
  /** Sums over tokens. */
  readonly max1OverMax2: number;
  readonly max2OverMax3: number;
  readonly gateEntropy: number;
}

export interface LayerSettings {
  readonly layer: number;
  readonly numExperts: number;
  readonly topK: number;
  /** Experts whose gate probability is not 0 by definition: all, or the chosen ones. */
  readonly numScored: number;
  /** Real or virtual; null: nothing is dropped, not even virtually. */
  readonly capacityFactor: number | null;
  readonly coefficient: number;
  /** Sequences of the global batch. */
  readonly numSequences: number;
}

/** Metrics of a layer from all micro-batches of a step. */
export function layerMetrics(micro: readonly MicroRouting[], settings: LayerSettings): LayerMetrics {
  const { layer, numExperts, topK, numScored, capacityFactor, coefficient, numSequences } = settings;
  const total = (of: (routing: MicroRouting) => number): number => micro.reduce((sum, routing) => sum + of(routing), 0);
  const numTokens = total((m) => m.numTokens.reduce((a, b) => a + b, 0));
  const numGroups = total((m) => m.numTokens.length);
  const perToken = (of: (routing: MicroRouting) => number): number => total(of) / Math.max(1, numTokens);
  const counts = loadCounts(micro, numExperts);
  const assignments = counts.reduce((a, b) => a + b, 0);
  const numDropped =
    capacityFactor === null
      ? 0
      : total((m) => droppedPerGroup(m.counts, m.numTokens, { factor: capacityFactor, topK, numExperts }).reduce((a, b) => a + b, 0));
  const hasSwitch = micro.every((m) => m.switchLoss !== null);
  const hasSequence = micro.every((m) => m.sequenceLoss !== null);
  return {
    layer,
    dropRate: numDropped / Math.max(1, assignments),
    numDropped,
    coefficient,
    auxiliaryLoss: total((m) => m.auxiliaryLoss) / Math.max(1, numGroups),
    switchLoss: hasSwitch ? total((m) => m.switchLoss ?? 0) / Math.max(1, numGroups) : null,
    sequenceLoss: hasSequence ? total((m) => m.sequenceLoss ?? 0) / Math.max(1, numSequences) : null,
    zLoss: perToken((m) => m.zLoss),
    max1OverMax2: numScored < 2 ? null : perToken((m) => m.max1OverMax2),
    max2OverMax3: numScored < 3 ? null : perToken((m) => m.max2OverMax3),
    gateEntropy: perToken((m) => m.gateEntropy),
    ...loadMetrics(counts),
  };
}

/** Assignments of each expert over the step. */
export function loadCounts(micro: readonly MicroRouting[], numExperts: number): number[] {
  const counts = new Array<number>(numExperts).fill(0);
  for (const routing of micro)
    for (const [i, count] of routing.counts.entries()) counts[i % numExperts] = (counts[i % numExperts] ?? 0) + count;
  return counts;
}

/** What follows from the load alone. Without any assignment the load is all zeros and everything is finite still. */
export function loadMetrics(counts: readonly number[]): Pick<LayerMetrics, "load" | "loadEntropy" | "maxOverMeanLoad" | "deadExperts"> {
  const E = counts.length;
  const assignments = counts.reduce((a, b) => a + b, 0);
  const load = counts.map((count) => count / Math.max(1, assignments));
  const entropy = load.reduce((sum, share) => sum - (share > 0 ? share * Math.log(share) : 0), 0);
  return {
    load,
    loadEntropy: Math.exp(entropy) / E,
    maxOverMeanLoad: Math.max(...load) * E,
    deadExperts: counts.filter((count) => count === 0).length,
  };
}

/** Selection biases after a step (arXiv 2408.15664, algorithm 1): + rate for experts below the mean load, - rate above. f32. */
export function updatedBias(bias: Float32Array, counts: readonly number[], rate: number): Float32Array {
  const mean = counts.reduce((a, b) => a + b, 0) / counts.length;
  return bias.map((value, e) => value + rate * Math.sign(mean - (counts[e] ?? 0)));
}
