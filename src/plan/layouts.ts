/**
 * The layouts that a search goes through: every way to use N devices that the batch, the model and the node allow, except those that
 * another is never worse than.
 *
 * - tp: divisors of a node's devices (tensor parallelism between nodes is never tried, but can be asked for), at most the heads.
 * - pp: with pp * tp a divisor of N and a layer for every stage; dp = N / (pp * tp).
 * - micro-batch: powers of two with dp * microBatch a divisor of the batch.
 * - experts: ep a divisor of the experts, etp 1 or tp, ep * etp a divisor of dp * tp: EDP (ep = tp, etp = 1), EP, ETP and TP are among them.
 * - interleave: 2, 3, 4, 6, 8, ... stages a rank, as layers allow, where there are at least pp micro-batches.
 * - sequence parallelism wherever tp > 1, and ZeRO-1 wherever dp > 1: both hold less and send no more than their absence. ZeRO-2 and 3 only
 *   without a pipeline: each micro-batch would exchange gradients. All can be fixed.
 */
import { MoeError } from "../util/errors.ts";
import type { PipelineScheduleName } from "../util/pipeline-schedule.ts";
import type { PlanLayout, Workload } from "./types.ts";

/** What is decided already. */
export type FixedLayout = Partial<PlanLayout>;

export interface LayoutSpace {
  readonly workload: Workload;
  readonly numDevices: number;
  readonly devicesPerNode: number;
  readonly fixed: FixedLayout;
  /** Only layouts of this schedule: several stages a rank, or one. Default: both. */
  readonly schedule?: PipelineScheduleName;
}

/** All layouts of the space. Throws `configuration` where what is fixed is impossible, or no layout is left, saying why. */
export function layoutsOf(space: LayoutSpace): PlanLayout[] {
  checkFixed(space);
  const layouts = [...enumerate(space)];
  if (layouts.length === 0) throw new MoeError("configuration", nothingLeft(space));
  return layouts;
}

export function divisors(n: number): number[] {
  const small: number[] = [];
  for (let d = 1; d * d <= n; d++) if (n % d === 0) small.push(d);
  return [...new Set([...small, ...small.map((d) => n / d)])].toSorted((a, b) => a - b);
}

function* enumerate(space: LayoutSpace): Generator<PlanLayout> {
  const { workload, numDevices, devicesPerNode, fixed } = space;
  const { model, batchSequences } = workload;
  const tps = fixed.tp === undefined ? divisors(devicesPerNode).filter((tp) => tp <= model.numHeads) : [fixed.tp];
  for (const tp of tps) {
    const pps = fixed.pp === undefined ? divisors(numDevices / tp).filter((pp) => pp <= model.numLayers) : [fixed.pp];
    for (const pp of pps) {
      const dp = numDevices / (pp * tp);
      if (!Number.isInteger(dp) || (fixed.dp ?? dp) !== dp) continue;
      for (const microBatch of microBatches(batchSequences, dp, fixed.microBatch)) {
        const perRank = batchSequences / (dp * microBatch);
        for (const { ep, etp } of expertDegrees(space, dp, tp)) {
          for (const interleave of interleaves(space, pp, perRank)) {
            for (const zero of zeros(dp, pp, fixed.zero)) {
              yield { pp, dp, tp, ep, etp, microBatch, interleave, sequenceParallel: fixed.sequenceParallel ?? tp > 1, zero };
            }
          }
        }
      }
    }
  }
}

function microBatches(batch: number, dp: number, fixed: number | undefined): number[] {
  if (batch % dp !== 0) return [];
  if (fixed !== undefined) return batch % (dp * fixed) === 0 ? [fixed] : [];
  const sizes: number[] = [];
  for (let size = 1; size <= 64 && batch % (dp * size) === 0; size *= 2) sizes.push(size);
  return sizes;
}

function expertDegrees({ workload, fixed }: LayoutSpace, dp: number, tp: number): { ep: number; etp: number }[] {
  const { moe } = workload.model;
  if (moe === null) return [{ ep: 1, etp: 1 }];
  const eps = fixed.ep === undefined ? divisors(moe.numExperts) : [fixed.ep];
  const etps = fixed.etp === undefined ? [...new Set([1, tp])] : [fixed.etp];
  return eps.flatMap((ep) => etps.filter((etp) => (dp * tp) % (ep * etp) === 0).map((etp) => ({ ep, etp })));
}

function interleaves({ workload, fixed, schedule }: LayoutSpace, pp: number, numMicroBatches: number): number[] {
  const fits = (v: number): boolean => schedule === undefined || v > 1 === (schedule === "interleaved");
  if (fixed.interleave !== undefined) return [fixed.interleave].filter(fits);
  if (pp === 1 || numMicroBatches < pp) return [1].filter(fits);
  const most = Math.floor(workload.model.numLayers / pp);
  return [1, 2, 3, 4, 6, 8, 12, 16].filter((v) => v <= most && fits(v));
}

function zeros(dp: number, pp: number, fixed: PlanLayout["zero"] | undefined): PlanLayout["zero"][] {
  if (fixed !== undefined) return [fixed];
  if (dp === 1) return [0];
  return pp === 1 ? [1, 2, 3] : [1];
}

function checkFixed({ workload, numDevices, fixed }: LayoutSpace): void {
  const { model, batchSequences } = workload;
  const refuse = (problem: string): never => {
    throw new MoeError("configuration", `layout: ${problem}`);
  };
  const { pp, dp, tp, ep, etp, microBatch, interleave } = fixed;
  const product = (pp ?? 1) * (dp ?? 1) * (tp ?? 1);
  const named = Object.entries({ pp, dp, tp }).filter(([, value]) => value !== undefined);
  const text = named.map(([name, value]) => `${name} ${value}`).join(" * ");
  if (numDevices % product !== 0) refuse(`${text} = ${product} does not divide ${numDevices} devices`);
  if (named.length === 3 && product !== numDevices) refuse(`${text} = ${product}, but there are ${numDevices} devices (--gpus)`);
  const stages = (pp ?? 1) * (interleave ?? 1);
  if (stages > model.numLayers)
    refuse(`${stages} stages (pp ${pp ?? 1} * interleave ${interleave ?? 1}) for ${model.numLayers} layers: some would have none`);
  if (interleave !== undefined && interleave > 1 && pp === 1) refuse(`interleave ${interleave} needs a pipeline, got pp 1`);
  if (tp !== undefined && tp > model.numHeads) refuse(`tp ${tp} is above the ${model.numHeads} heads: some ranks would have none`);
  if (model.moe === null && ((ep ?? 1) > 1 || (etp ?? 1) > 1)) refuse(`ep ${ep ?? 1}, etp ${etp ?? 1}: the model has no experts`);
  if (model.moe !== null && ep !== undefined && ep > model.moe.numExperts)
    refuse(`ep ${ep} is above the ${model.moe.numExperts} experts of a layer: some ranks would have none`);
  if (dp !== undefined && batchSequences % (dp * (microBatch ?? 1)) !== 0) {
    const each = dp * (microBatch ?? 1);
    refuse(
      `dp ${dp} * microBatch ${microBatch ?? 1} = ${each} does not divide the batch of ${batchSequences} sequences; nearest: ${nearestMultiples(batchSequences, each)}`,
    );
  }
}

/** `8 or 16 sequences (65536 or 131072 tokens)`, without the tokens. */
export function nearestMultiples(n: number, step: number): string {
  const below = step * Math.floor(n / step);
  return below === 0 ? String(step) : `${below} or ${below + step}`;
}

/** Why the enumeration is empty: batch, devices and model are checked in the order in which they cut. */
function nothingLeft({ workload, numDevices, devicesPerNode, fixed, schedule }: LayoutSpace): string {
  const { batchSequences, model } = workload;
  const tps = fixed.tp === undefined ? divisors(devicesPerNode).filter((tp) => tp <= model.numHeads) : [fixed.tp];
  const dps = tps.flatMap((tp) =>
    divisors(numDevices / tp)
      .filter((pp) => (fixed.pp ?? pp) === pp && pp <= model.numLayers)
      .map((pp) => numDevices / (pp * tp)),
  );
  const usable = [...new Set(dps)].filter((dp) => Number.isInteger(dp) && (fixed.dp ?? dp) === dp).toSorted((a, b) => a - b);
  const least = usable[0];
  if (least === undefined)
    return `no layout: ${numDevices} devices cannot be used with ${Object.entries(fixed)
      .map(([name, value]) => `${name} ${value}`)
      .join(", ")} and ${model.numLayers} layers`;
  const step = least * (fixed.microBatch ?? 1);
  if (batchSequences % step !== 0) {
    return (
      `no layout: a batch of ${batchSequences} sequences does not divide over any data-parallel size of ${numDevices} devices ` +
      `(${usable.join(", ")}${fixed.microBatch === undefined ? "" : `, micro-batch ${fixed.microBatch}`}); nearest: ${nearestMultiples(batchSequences, step)} sequences`
    );
  }
  const asked = [
    ...Object.entries(fixed).map(([name, value]) => `${name} ${value}`),
    ...(schedule === undefined ? [] : [`schedule ${schedule}`]),
  ];
  return `no layout: ${asked.length === 0 ? "the space" : asked.join(", ")} leaves none for ${numDevices} devices, ${batchSequences} sequences and ${model.moe?.numExperts ?? 0} experts`;
}
