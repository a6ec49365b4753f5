/**
 * Who computes what in a tensor-parallel group of unequal ranks: a share for each rank, what it needs in memory, and how fast the
 * slowest one is. Arithmetic only, from the configuration.
 *
 * Each of attention, dense network, experts, shared expert and vocabulary ends with a sum or a gather over the ranks, so the slowest rank
 * decides each by itself, and each is cut by itself (`partition`). Time is counted in weights that a token reads, which is what
 * decoding is bound by. Memory couples the parts: while a rank exceeds its limit, it gives away units of the part that costs the
 * least time per byte (experts of which a token reads few, first), and the others take them.
 *
 * An uneven cut of equal ranks is not faster than padding every count to a multiple of the ranks (36 heads over 8 ranks: 5 on the slowest
 * either way): it saves memory. The notes of a plan say where that is so.
 */
import { hasExperts, type ModelConfig } from "./model.ts";
import { MoeError } from "../util/errors.ts";
import { equalSpeeds, intervalLength, partition, type Interval } from "../util/partition.ts";
import { paddedHeads, paddedMemory, rankMemory, type MemoryFormat, type RankMemory } from "./rank-memory.ts";
import { kvHeadsOf, type ExpertMode, type RankShare } from "./rank-share.ts";

export interface TensorParallelOptions {
  readonly ranks: number;
  /** Relative speed of each rank. Default: equal. */
  readonly weights?: readonly number[];
  /** What each rank can hold of weights and cache, one number for all or one each. Default: no limit. */
  readonly memoryBytes?: number | readonly number[];
  /** Tokens whose keys and values must fit beside the weights. Default 0. */
  readonly cacheTokens?: number;
  /** Default: whichever has the faster slowest rank; whole experts where both are level. */
  readonly mode?: ExpertMode;
  /**
   * Columns of networks are cut at multiples of this. Default: 16 where there are enough, else 1; 128 under FP8 block scales. Heads are
   * cut under those so that blocks stay whole, too: in whole groups, of 128 rows at least.
   */
  readonly ffnUnit?: number;
  readonly format: MemoryFormat;
}

export interface RankPlan extends RankMemory {
  readonly share: RankShare;
  /** weightBytes and the cache of `cacheTokens`. */
  readonly totalBytes: number;
}

export interface TensorParallelPlan {
  readonly mode: ExpertMode;
  readonly weights: readonly number[];
  /** Tokens of cache in `totalBytes` of each rank. */
  readonly cacheTokens: number;
  readonly ranks: readonly RankPlan[];
  /** Time of the slowest rank, part by part, against that of all work cut perfectly: 1 is ideal. */
  readonly slowdown: number;
  /** The same where every count is padded to a multiple of the ranks (of units, where it is cut in units). */
  readonly paddedSlowdown: number;
  /** Bytes that padding would take on every rank. */
  readonly padded: RankMemory;
  /** Sentences for who reads the plan. */
  readonly notes: readonly string[];
}

type PartName = "heads" | "ffn" | "sharedFfn" | "experts" | "expertColumns" | "vocab";
interface Part {
  readonly name: PartName;
  readonly label: string;
  readonly total: number;
  readonly unit: number;
  /** Elements of each rank where the count is padded. */
  readonly padded: number;
  /** Weights that a token reads of one element, in all layers. */
  readonly cost: number;
  /** Weights that a rank holds of one element, in all layers. */
  readonly held: number;
}

/** Throws `configuration` for options that make no sense, and where the model does not fit the ranks (with what is missing). */
export function tensorParallelPlan(config: ModelConfig, options: TensorParallelOptions): TensorParallelPlan {
  const { ranks, weights = equalSpeeds(ranks), memoryBytes = Infinity, mode } = options;
  if (!Number.isSafeInteger(ranks) || ranks < 1)
    throw new MoeError("configuration", `tensor parallelism: expected a count of ranks, got ${ranks}`);
  const limits = typeof memoryBytes === "number" ? equalSpeeds(ranks).map(() => memoryBytes) : memoryBytes;
  for (const [what, list] of Object.entries({ speeds: weights, "memory limits": limits })) {
    if (list.length !== ranks || !list.every((value) => value >= 0))
      throw new MoeError(
        "configuration",
        `tensor parallelism: expected ${ranks} ${what} (one a rank, none negative), got [${list.join(", ")}]`,
      );
  }
  const attempts = (mode === undefined ? (["experts", "slices"] as const) : [mode]).map((tried) =>
    attempt(config, tried, weights, limits, options),
  );
  let best: TensorParallelPlan | null = null;
  for (const plan of attempts) {
    if (!(plan instanceof MoeError) && (best === null || plan.slowdown < best.slowdown * (1 - 1e-9))) best = plan;
  }
  if (best !== null) return best;
  throw attempts.find((plan) => plan instanceof MoeError) ?? new MoeError("internal", "tensor parallelism: no plan");
}

function attempt(
  config: ModelConfig,
  mode: ExpertMode,
  weights: readonly number[],
  limits: readonly number[],
  options: TensorParallelOptions,
): TensorParallelPlan | MoeError {
  const parts = partsOf(config, mode, options);
  const shares = fittingShares(config, parts, weights, limits, options);
  if (shares instanceof MoeError) return shares;
  const { cuts, ranks } = shares;
  const ideal = parts.reduce((sum, { total, cost }) => sum + total * cost, 0) / weights.reduce((a, b) => a + b, 0);
  const time = (count: (part: Part, rank: number) => number): number =>
    parts.reduce(
      (sum, part) => sum + Math.max(...weights.map((speed, r) => (count(part, r) === 0 ? 0 : (count(part, r) * part.cost) / speed))),
      0,
    ) / ideal;
  const slowdown = time(({ name }, r) => lengthAt(cuts[name], r));
  const paddedSlowdown = time(({ padded }) => padded);
  const padded = paddedMemory(config, weights.length, ranks[0]?.share ?? shareOf(config, cuts, 0), options.format);
  const plan = { mode, weights, cacheTokens: options.cacheTokens ?? 0, ranks, slowdown, paddedSlowdown, padded };
  return { ...plan, notes: notesOf(parts, cuts, plan) };
}

function partsOf(config: ModelConfig, mode: ExpertMode, { ranks, ffnUnit, format }: TensorParallelOptions): Part[] {
  const { hiddenSize: H, headDim: D, numLayers, numHeads, numKvHeads, moe } = config;
  const numMoe = Array.from({ length: numLayers }, (_, layer) => hasExperts(config, layer)).filter(Boolean).length;
  const inBlocks = format.weights === "fp8" && format.scales === "block128";
  const unitOf = (columns: number): number => ffnUnit ?? (inBlocks ? 128 : columns >= 64 * ranks ? 16 : 1);
  const headUnit = inBlocks ? (numHeads / numKvHeads) * headsOfBlocks(D) : 1;
  const part = (name: PartName, label: string, total: number, unit: number, held: number, used = 1): Part => ({
    name,
    label,
    total,
    unit,
    padded: name === "heads" ? paddedHeads(config, ranks) : unit * Math.ceil(total / unit / ranks),
    held,
    cost: held * used,
  });
  const parts = [
    part("heads", "query heads", numHeads, headUnit, numLayers * 2 * D * H * (1 + numKvHeads / numHeads)),
    part("vocab", "rows of the vocabulary", config.vocabSize, 1, H * (config.tiedEmbeddings ? 1 : 2), config.tiedEmbeddings ? 1 : 0.5),
  ];
  if (numMoe < numLayers)
    parts.push(part("ffn", "columns of the network", config.ffnSize, unitOf(config.ffnSize), (numLayers - numMoe) * 3 * H));
  if (moe === null || numMoe === 0) return parts;
  const { numExperts: E, expertFfnSize: F, topK, sharedExpert } = moe;
  if (mode === "experts") parts.push(part("experts", "experts", E, 1, numMoe * 3 * H * F, topK / E));
  else parts.push(part("expertColumns", "columns of each expert", F, unitOf(F), numMoe * 3 * H * E, topK / E));
  if (sharedExpert !== null) {
    const { ffnSize } = sharedExpert;
    parts.push(part("sharedFfn", "columns of the shared expert", ffnSize, unitOf(ffnSize), numMoe * 3 * H));
  }
  return parts;
}

/** The fewest heads whose rows are whole blocks of 128. */
function headsOfBlocks(headDim: number): number {
  let heads = 1;
  while ((heads * headDim) % 128 !== 0) heads++;
  return heads;
}

type Cuts = Partial<Record<PartName, readonly Interval[]>>;
function lengthAt(cut: readonly Interval[] | undefined, rank: number): number {
  const interval = cut?.[rank];
  return interval === undefined ? 0 : intervalLength(interval);
}

/** What is not cut (experts in mode slices, say) is whole on every rank. */
function shareOf(config: ModelConfig, cuts: Cuts, rank: number): RankShare {
  const part = (name: PartName, total: number): Interval => cuts[name]?.[rank] ?? { start: 0, end: total };
  const heads = part("heads", config.numHeads);
  const { moe } = config;
  return {
    heads,
    kvHeads: kvHeadsOf(heads, config),
    ffn: part("ffn", config.ffnSize),
    sharedFfn: part("sharedFfn", moe?.sharedExpert?.ffnSize ?? 0),
    experts: part("experts", moe?.numExperts ?? 0),
    expertColumns: part("expertColumns", moe?.expertFfnSize ?? 0),
    vocab: part("vocab", config.vocabSize),
  };
}

/** The fastest cuts, then the cheapest ones that fit. */
function fittingShares(
  config: ModelConfig,
  parts: readonly Part[],
  weights: readonly number[],
  limits: readonly number[],
  { format, cacheTokens = 0 }: TensorParallelOptions,
): { cuts: Cuts; ranks: RankPlan[] } | MoeError {
  const caps = new Map(parts.map(({ name }) => [name, weights.map(() => Infinity)]));
  const cheapest = parts.toSorted((a, b) => a.cost / a.held - b.cost / b.held);
  for (;;) {
    const cuts: Cuts = {};
    for (const { name, total, unit } of parts) {
      try {
        cuts[name] = partition(total, weights, { unit, limits: caps.get(name) ?? [] });
      } catch (error) {
        if (error instanceof MoeError && limits.some(Number.isFinite)) return tooSmall(config, limits, { format, cacheTokens });
        throw error;
      }
    }
    const ranks = weights.map((_, r) => {
      const share = shareOf(config, cuts, r);
      const memory = rankMemory(config, share, format);
      return { share, ...memory, totalBytes: memory.weightBytes + cacheTokens * memory.kvBytesPerToken };
    });
    const excess = ranks.map(({ totalBytes }, r) => totalBytes - (limits[r] ?? 0));
    const fullest = excess.indexOf(Math.max(...excess));
    if ((excess[fullest] ?? 0) <= 0) return { cuts, ranks };
    const part = cheapest.find(({ name }) => lengthAt(cuts[name], fullest) > 0);
    if (part === undefined) return tooSmall(config, limits, { format, cacheTokens });
    const most = caps.get(part.name) ?? [];
    // At least a unit, at most what the excess asks for: later rounds see the exact bytes.
    const bytesPerUnit = part.unit * part.held * (format.weights === "f32" ? 4 : format.weights === "bf16" ? 2 : 1);
    const away = part.unit * Math.max(1, Math.floor((excess[fullest] ?? 0) / bytesPerUnit));
    most[fullest] = Math.max(0, lengthAt(cuts[part.name], fullest) - away);
  }
}

function tooSmall(
  config: ModelConfig,
  limits: readonly number[],
  { format, cacheTokens }: { format: MemoryFormat; cacheTokens: number },
): MoeError {
  const { weightBytes, kvBytesPerToken } = rankMemory(config, shareOf(config, {}, 0), format);
  const needed = weightBytes + cacheTokens * kvBytesPerToken;
  const room = limits.reduce((a, b) => a + b, 0);
  return new MoeError(
    "configuration",
    `tensor parallelism: the model needs ${gigabytes(needed)} GB (${cacheTokens} cached tokens included) and what every rank holds a copy of, ` +
      `got ${gigabytes(room)} GB on ${limits.length} ranks; use more ranks, a smaller format or fewer tokens`,
  );
}

export function gigabytes(bytes: number): string {
  return (bytes / 1e9).toFixed(bytes < 1e7 ? 6 : 2);
}

function notesOf(parts: readonly Part[], cuts: Cuts, plan: Omit<TensorParallelPlan, "notes">): string[] {
  const { weights, ranks, padded } = plan;
  const P = weights.length;
  if (P === 1 || weights.some((weight) => weight !== weights[0])) return [];
  const notes = parts
    .filter(({ total, unit }) => unit === 1 && total < 1024 && total % P !== 0)
    .map(({ name, label, total, padded: each }) => {
      const shares = weights.map((_, r) => lengthAt(cuts[name], r));
      const multiple = P * each;
      const faster = Math.max(...shares) < each;
      const time = faster ? "a shorter critical path than" : "the same critical path as";
      return `${total} ${label} over ${P} equal ranks as [${shares.join(", ")}]: ${time} padding to ${multiple}, ${percent(1 - total / multiple)} less memory for them`;
    });
  const used = ranks.reduce((sum, { weightBytes }) => sum + weightBytes, 0);
  const saved = 1 - used / (P * padded.weightBytes);
  if (saved > 5e-4) notes.push(`weights of all ranks: ${percent(saved)} less than with padding`);
  return notes;
}
function percent(fraction: number): string {
  return `${(100 * fraction).toFixed(1)}%`;
}

/** The plan as lines of text, one a rank, for printing before anything is loaded. */
export function describePlan(plan: TensorParallelPlan): string[] {
  const span = ({ start, end }: Interval): string => (end === start ? "none" : `${start}-${end - 1}`);
  const experts = plan.ranks.some(({ share }) => intervalLength(share.experts) > 0);
  const { cacheTokens } = plan;
  const lines = plan.ranks.map(({ share, weightBytes, kvBytesPerToken, totalBytes }, r) => {
    const parts = [
      `heads ${span(share.heads)} (kv ${span(share.kvHeads)})`,
      ...(experts ? [`experts ${span(share.experts)}, columns ${span(share.expertColumns)}`] : [`ffn ${span(share.ffn)}`]),
      `vocabulary ${span(share.vocab)}`,
    ];
    const total = cacheTokens === 0 ? "" : `; with ${cacheTokens} tokens ${gigabytes(totalBytes)} GB`;
    return `rank ${r}: ${parts.join("; ")}; weights ${gigabytes(weightBytes)} GB, cache ${(kvBytesPerToken / 1e3).toFixed(1)} KB a token${total}`;
  });
  const mode = experts ? ` (${plan.mode === "experts" ? "whole experts a rank" : "slices of every expert"})` : "";
  return [
    `tensor parallelism over ${plan.ranks.length} ranks${mode}: slowest rank at ${plan.slowdown.toFixed(3)} of a perfect cut, padded ${plan.paddedSlowdown.toFixed(3)}`,
    ...lines,
    ...plan.notes,
  ];
}
