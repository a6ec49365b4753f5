/** A micro-batch as two halves that take turns (`layout.overlap`): each of whole balance groups, so that routing, drops and balance losses are the micro-batch's. */
import type { TokenBatch } from "../data/dataset.ts";
import type { MicroResult } from "./micro-step.ts";
import type { MicroRouting } from "./routing.ts";

/** Consecutive sequences of the global batch. */
export interface MicroPart {
  readonly tokens: TokenBatch;
  /** Within the global batch. */
  readonly firstSequence: number;
}

/** The first of the halves has a balance group more where their number is odd; one group alone is one part. */
export function halvesOf({ tokens, firstSequence }: MicroPart, balanceGroupSequences: number): MicroPart[] {
  const numGroups = tokens.numSequences / balanceGroupSequences;
  const cut = Math.ceil(numGroups / 2) * balanceGroupSequences;
  return [
    [0, cut],
    [cut, tokens.numSequences],
  ]
    .filter(([start = 0, end = 0]) => end > start)
    .map(([start = 0, end = 0]) => ({ tokens: sequencesOf(tokens, start, end), firstSequence: firstSequence + start }));
}

/** Sequences start..end-1 of a batch, as a batch: rows count from its first. */
export function sequencesOf(tokens: TokenBatch, start: number, end: number): TokenBatch {
  const S = tokens.sequenceLength;
  const cut = (values: Int32Array): Int32Array => values.slice(start * S, end * S);
  const rows = (values: Int32Array): Int32Array => cut(values).map((row) => row - start * S);
  const targets = cut(tokens.targets);
  return {
    numSequences: end - start,
    sequenceLength: S,
    ids: cut(tokens.ids),
    targets,
    positions: cut(tokens.positions),
    keyBase: rows(tokens.keyBase),
    keyEnd: rows(tokens.keyEnd),
    numTargets: targets.reduce((n, target) => n + (target >= 0 ? 1 : 0), 0),
  };
}

/** What parts measured, as of one micro-batch. */
export function joinHalves(parts: readonly MicroResult[]): MicroResult {
  const [first, ...others] = parts;
  if (first === undefined || others.length === 0) return first ?? { loss: 0, routing: [] };
  const routing = first.routing.map((layer, i) => others.reduce((sum, other) => joined(sum, other.routing[i] ?? sum), layer));
  return { loss: parts.reduce((sum, { loss }) => sum + loss, 0), routing };
}
function joined(a: MicroRouting, b: MicroRouting): MicroRouting {
  const both = (x: number | null, y: number | null): number | null => (x === null || y === null ? null : x + y);
  return {
    layer: a.layer,
    counts: Int32Array.from([...a.counts, ...b.counts]),
    numTokens: [...a.numTokens, ...b.numTokens],
    auxiliaryLoss: a.auxiliaryLoss + b.auxiliaryLoss,
    switchLoss: both(a.switchLoss, b.switchLoss),
    sequenceLoss: both(a.sequenceLoss, b.sequenceLoss),
    zLoss: a.zLoss + b.zLoss,
    max1OverMax2: a.max1OverMax2 + b.max1OverMax2,
    max2OverMax3: a.max2OverMax3 + b.max2OverMax3,
    gateEntropy: a.gateEntropy + b.gateEntropy,
  };
}
