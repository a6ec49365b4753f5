/**
 * Text from a model that is cut over ranks of this process: the plan first, from the model's files alone, then ranks that each load their
 * part and all generate the same text, of which rank 0 tells. No rank is asked what token it chose: their logits are the same bits.
 *
 * ```ts
 * const cut = planModel("models/moe", { ranks: 3, weights: [2, 1, 1] });
 * console.log(describePlan(cut.plan).join("\n"));
 * const { generation } = await generateParallel(cut, promptIds, { maxTokens: 50 }, (text) => process.stdout.write(text));
 * ```
 */
import { dtypeBytes } from "../backend/kernels.ts";
import {
  huggingFacePieces,
  openModelSource,
  parameterSpecs,
  type ActivationChoice,
  type ModelDType,
  type ModelSource,
} from "../model/index.ts";
import { mayBeFp8 } from "../model/parameters.ts";
import { generateAsRank } from "./rank-body.ts";
import {
  startRanks,
  tensorParallelPlan,
  type MemoryFormat,
  type RankContext,
  type RankShare,
  type TensorParallelPlan,
} from "../parallel/index.ts";
import { MoeError } from "../util/errors.ts";
import type { GenerateOptions, Generation } from "./generate.ts";

export { describePlan, gigabytes } from "../parallel/index.ts";

export interface CutOptions {
  readonly ranks: number;
  /** Relative speed of each rank. Default: equal. */
  readonly weights?: readonly number[];
  /** Bytes that each rank can hold. Default: no limit. */
  readonly memoryBytes?: readonly number[];
  /** Tokens of cache that must fit. Default 0. */
  readonly cacheTokens?: number;
  readonly dtype?: ModelDType;
  readonly cacheDtype?: GenerateOptions["cacheDtype"];
  readonly activations?: ActivationChoice;
}

/** A model with the plan of its ranks. */
export interface CutModel {
  readonly path: string;
  readonly dtype: ModelDType;
  readonly activations: ActivationChoice;
  readonly plan: TensorParallelPlan;
}

/** Plans from a model's configuration and the kind of its files; loads nothing. Throws as `openModelSource` and `tensorParallelPlan` do. */
export function planModel(path: string, { dtype: wanted, cacheDtype, activations = "keep", ...options }: CutOptions): CutModel {
  using source = openModelSource(path);
  const dtype = wanted ?? source.dtype;
  const kvElementBytes = dtypeBytes[cacheDtype ?? dtype];
  const plan = tensorParallelPlan(source.config, { ...options, format: { ...formatOf(source, dtype), kvElementBytes } });
  return { path, dtype, activations, plan };
}

/** FP8 where the first matrix of a layer that may be is. */
function formatOf(source: ModelSource, dtype: ModelDType): MemoryFormat {
  const spec = parameterSpecs(source.config, dtype).find(mayBeFp8);
  const [piece] = spec === undefined ? [] : huggingFacePieces(spec, source.layout, source.config);
  const scales = piece === undefined ? null : source.scales(piece.name, piece);
  return scales === null ? { weights: dtype } : { weights: "fp8", scales: scales.scaling };
}

/** What a rank held, and what the plan said. */
export interface RankReport {
  readonly share: RankShare;
  readonly plannedBytes: number;
  readonly weightBytes: number;
}
/** For the ranks: see `rank.ts`. */
export interface GenerateJob {
  readonly path: string;
  readonly dtype: ModelDType;
  readonly activations: ActivationChoice;
  readonly shares: readonly RankShare[];
  readonly promptIds: readonly number[];
  readonly options: Omit<GenerateOptions, "signal">;
}
export interface GenerateReport {
  readonly generation: Generation;
  readonly weightBytes: number;
}

/**
 * `generateText` on all ranks. `onText` gets each piece as it becomes certain. Rejects with the error of the rank that failed first
 * (`communication` where one just ended).
 */
export async function generateParallel(
  cut: CutModel,
  promptIds: ArrayLike<number>,
  options: GenerateJob["options"],
  onText?: (text: string) => void,
): Promise<ParallelGeneration> {
  const job = jobOf(cut, promptIds, options);
  const ranks = startRanks({
    size: job.shares.length,
    entry: new URL(`./rank${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`, import.meta.url),
    data: job,
    onMessage: (_, text) => {
      if (typeof text === "string") onText?.(text);
    },
  });
  const reports = (await ranks.results) as GenerateReport[];
  const [first] = reports;
  if (first === undefined) throw new MoeError("internal", "parallel generation: no rank");
  return withHeld(
    cut,
    first.generation,
    reports.map(({ weightBytes }) => weightBytes),
  );
}

/**
 * The same where this process is one rank of several, over MPI: all of them call it with the same cut and prompt, and get the same back. Text goes to
 * `onText` on rank 0 alone. Throws `communication` where the group is lost, which the caller must not survive (`runMpiRank`).
 */
export async function generateOverProcesses(
  context: Pick<RankContext, "engine" | "communicator">,
  cut: CutModel,
  promptIds: ArrayLike<number>,
  options: GenerateJob["options"],
  onText: (text: string) => void = () => undefined,
): Promise<ParallelGeneration> {
  const { communicator } = context;
  const { generation, weightBytes } = await generateAsRank(context, jobOf(cut, promptIds, options), onText);
  const held = cut.plan.ranks.map((_, rank) => {
    const told = communicator.share(rank === communicator.rank ? new TextEncoder().encode(String(weightBytes)) : null, rank);
    return Number(new TextDecoder().decode(told));
  });
  return withHeld(cut, generation, held);
}

/** A text, and what each rank held for it. */
export interface ParallelGeneration {
  readonly generation: Generation;
  readonly ranks: readonly RankReport[];
}

function jobOf({ path, dtype, activations, plan }: CutModel, promptIds: ArrayLike<number>, options: GenerateJob["options"]): GenerateJob {
  return { path, dtype, activations, shares: plan.ranks.map(({ share }) => share), promptIds: Array.from(promptIds), options };
}
function withHeld({ plan }: CutModel, generation: Generation, weightBytes: readonly number[]): ParallelGeneration {
  const ranks = plan.ranks.map(({ share, weightBytes: plannedBytes }, r) => ({ share, plannedBytes, weightBytes: weightBytes[r] ?? 0 }));
  return { generation, ranks };
}
