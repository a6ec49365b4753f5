/**
 * A plan for the programs that run it: a layout of ours (`moe train --layout`), arguments of Megatron-LM, a FlagScale configuration.
 *
 * Where a program cannot say what the plan says, its notes tell so: nothing is dropped silently. What Megatron-LM and FlagScale have in common is in
 * `megatron-arguments.ts`. FlagScale's own keys were read in FlagOpen/FlagScale (`demo_hetero.yaml` and `hetero.yaml` of its examples,
 * `flagscale/train/arguments.py`) in 2026.
 */
import type { ModelConfig } from "../config/model.ts";
import type { LayoutInput } from "../config/layout.ts";
import type { EvaluatedLayout } from "./evaluate.ts";
import {
  megatronExperts,
  megatronModel,
  megatronNotes,
  megatronPrecision,
  megatronRecompute,
  megatronSoftware,
  type MegatronArguments,
} from "./megatron-arguments.ts";
import { megatronLayout } from "./megatron.ts";
import { softwarePresets } from "./software.ts";
import type { Software } from "./types.ts";

export interface ExportedPlan {
  readonly text: string;
  /** What the program cannot do of the plan, or does otherwise. */
  readonly notes: readonly string[];
}

/** What an export needs besides the plan. */
export interface ExportContext {
  readonly model: ModelConfig;
  readonly sequenceLength: number;
  readonly batchSequences: number;
  /** Device of each pipeline rank, for programs that are told. */
  readonly devices: readonly string[];
  /** What was planned for: number types, attention, dropout. Default: Megatron's of today. */
  readonly software?: Software;
}

function recomputeCounts({ stages }: EvaluatedLayout): number[] {
  return stages.map(({ fullRecompute }) => fullRecompute);
}
function layerCounts({ stages }: EvaluatedLayout): number[] {
  return stages.map(({ numLayers }) => numLayers);
}

/** The layout as `moe train --layout` reads it. `notes` as in `ExportedPlan`. */
export function trainingLayout(
  plan: EvaluatedLayout,
  model: ModelConfig,
): { readonly layout: LayoutInput; readonly notes: readonly string[] } {
  const { pp, dp, tp, ep, etp, interleave, microBatch, sequenceParallel, zero } = plan.layout;
  const notes: string[] = [];
  if (zero > 1) notes.push(`ZeRO-${zero} is not built here: the layout says ZeRO-1, which holds more`);
  if (plan.stages.some(({ selectiveRecompute }) => selectiveRecompute > 0))
    notes.push("selective recomputation is not built here: attention never keeps its scores");
  // A model without experts has no strategy; EDP is the default.
  const strategy = model.moe === null || (ep === tp && etp === 1) ? "EDP" : etp === 1 ? "EP" : ep === 1 && etp === tp ? "TP" : "ETP";
  const degrees = strategy === "EP" ? { ep } : strategy === "ETP" ? { ep, etp } : {};
  const layout: LayoutInput = {
    pp,
    interleave,
    schedule: plan.schedule,
    layers: layerCounts(plan),
    recompute: recomputeCounts(plan),
    dp,
    tp,
    strategy,
    ...degrees,
    sequenceParallel,
    zero: zero === 0 ? 0 : 1,
    microBatchSequences: microBatch,
  };
  return { layout, notes };
}

/** Arguments of Megatron-LM's `pretrain_gpt.py`, one or a pair a line. */
export function megatronArguments(plan: EvaluatedLayout, context: ExportContext): ExportedPlan {
  const { model, sequenceLength, batchSequences, software = softwarePresets.megatron } = context;
  const { pp, tp, sequenceParallel, zero, microBatch, interleave } = plan.layout;
  const { granularity, numLayers } = megatronRecompute(plan);
  const most = Math.max(...numLayers);
  const args: MegatronArguments = {
    ...megatronModel(model),
    vocab_size: model.vocabSize,
    seq_length: sequenceLength,
    micro_batch_size: microBatch,
    global_batch_size: batchSequences,
    tensor_model_parallel_size: tp,
    pipeline_model_parallel_size: pp,
    pipeline_model_parallel_layout: megatronLayout(layerCounts(plan)),
    ...(sequenceParallel ? { sequence_parallel: true } : {}),
    ...(zero > 0 ? { use_distributed_optimizer: true, overlap_grad_reduce: true, overlap_param_gather: true } : {}),
    ...megatronExperts(model, plan.layout),
    ...megatronPrecision(software),
    ...megatronSoftware(software),
    ...(granularity === null ? {} : { recompute_granularity: granularity }),
    ...(granularity === "full" ? { recompute_method: "block", recompute_num_layers: most } : {}),
  };
  const notes = megatronNotes(plan, model);
  if (numLayers.some((count) => count !== most))
    notes.push(
      `Megatron recomputes as many layers on every stage: --recompute-num-layers ${most} is the most that one needs, the plan's are [${numLayers.join(", ")}]`,
    );
  if (interleave > 1 && plan.numMicroBatches % pp !== 0)
    notes.push(
      `older releases of Megatron refuse interleaved stages where the micro-batches (${plan.numMicroBatches}) do not divide by pp (${pp})`,
    );
  if (zero > 1)
    notes.push(
      `ZeRO-${zero} is Megatron's FSDP: --use-megatron-fsdp --data-parallel-sharding-strategy ${zero === 2 ? "optim_grads" : "optim_grads_params"}`,
    );
  const lines = Object.entries(args).map(([key, value]) => `--${key.replaceAll("_", "-")}${value === true ? "" : ` ${quoted(value)}`}`);
  return { text: `${lines.join(" \\\n")}\n`, notes };
}
/** For a shell, which has its own ideas of brackets and stars. */
function quoted(value: string | number): string {
  return /^[\w.,-]*$/.test(String(value)) ? String(value) : `"${value}"`;
}

type Yaml = string | number | boolean | readonly Yaml[] | { readonly [key: string]: Yaml };

/** A FlagScale training configuration: what the plan decides of `system`, `model` and `data`, with its heterogeneous pipeline. */
export function flagScaleConfig(plan: EvaluatedLayout, context: ExportContext): ExportedPlan {
  const { pp, dp, tp, ep, etp, microBatch, interleave, sequenceParallel, zero } = plan.layout;
  const { model, sequenceLength, batchSequences, devices, software = softwarePresets.megatron } = context;
  const notes = megatronNotes(plan, model);
  if (zero > 1) notes.push(`ZeRO-${zero} is not in the configuration: its distributed optimizer is ZeRO-1, which holds more`);
  if (model.moe?.sharedExpert?.gate === true)
    notes.push("moe_shared_expert_gate needs a FlagScale on Megatron-LM of January 2026 or later");
  if (interleave > 1)
    notes.push(
      "FlagScale's heterogeneous mode has no interleaved stages: the configuration has the plain pipeline, layers of a rank together",
    );
  const perRank = <T>(list: readonly T[], merge: (own: readonly T[]) => T): T[] =>
    Array.from({ length: pp }, (_, rank) => merge(list.filter((_, s) => s % pp === rank)));
  const sum = (own: readonly number[]): number => own.reduce((a, b) => a + b, 0);
  const layers = perRank(layerCounts(plan), sum);
  const { granularity, numLayers } = megatronRecompute(plan);
  const recompute = perRank(numLayers, sum);
  const meshes = deviceRuns(devices, pp);
  const config: Yaml = {
    system: {
      tensor_model_parallel_size: tp,
      pipeline_model_parallel_size: pp,
      ...megatronExperts(model, plan.layout),
      context_parallel_size: 1,
      sequence_parallel: sequenceParallel,
      use_distributed_optimizer: zero > 0,
      ...(zero > 0 ? { overlap_grad_reduce: true, overlap_param_gather: true } : {}),
      precision: { ...megatronPrecision(software), attention_softmax_in_fp32: true },
      hetero: {
        enable_hetero: true,
        hetero_pipeline_layer_split: layers,
        // [tp, cp, ep, dp, pp] of each mesh, one after the other.
        hetero_process_meshes: meshes.flatMap(({ count }) => [tp, 1, ep, dp, count]),
        ...(model.moe === null ? {} : { expert_tensor_parallel_size_per_process_mesh: meshes.map(() => etp) }),
        hetero_device_types: meshes.map(({ value }) => value),
        hetero_current_device_type: meshes[0]?.value ?? "",
        standalone_embedding_stage: false,
      },
      ...(granularity === null
        ? {}
        : {
            recompute: {
              recompute_granularity: granularity,
              ...(granularity === "full" ? wholeLayers(recompute, plan.numMicroBatches) : {}),
            },
          }),
    },
    model: {
      transformer_impl: "transformer_engine",
      ...megatronModel(model),
      ...megatronSoftware(software),
      use_rotary_position_embeddings: true,
      no_position_embedding: true,
      seq_length: sequenceLength,
      micro_batch_size: microBatch,
      global_batch_size: batchSequences,
    },
    data: { tokenizer: { vocab_size: model.vocabSize } },
  };
  return { text: `${yamlText(config, 0)}\n`, notes };
}

/** Recomputation of whole layers by pipeline rank and micro-batch: rows [ranks, micro-batches, value]. */
function wholeLayers(counts: readonly number[], numMicroBatches: number): { readonly [key: string]: Yaml } {
  const rows = (valueOf: (count: number) => number): Yaml[] =>
    runs(counts.map(valueOf)).map(({ count, value }) => [count, numMicroBatches, value]);
  return {
    recompute_method: "block",
    recompute_num_layers: Math.max(...counts),
    // 1 is full, 0 none.
    recompute_granularity_per_stage_micro_batch: rows((n) => (n > 0 ? 1 : 0)),
    // 1 is block: the first layers.
    recompute_method_per_stage_micro_batch: rows(() => 1),
    recompute_num_layers_per_stage_micro_batch: rows((n) => n),
  };
}

/** Consecutive equal values. */
function runs<T>(values: readonly T[]): { count: number; value: T }[] {
  const result: { count: number; value: T }[] = [];
  for (const value of values) {
    const last = result.at(-1);
    if (last !== undefined && last.value === value) last.count++;
    else result.push({ count: 1, value });
  }
  return result;
}
function deviceRuns(devices: readonly string[], pp: number): { count: number; value: string }[] {
  return runs(Array.from({ length: pp }, (_, rank) => devices[rank] ?? devices[0] ?? ""));
}

/** Block style for objects, flow style for lists, lists of lists a row a line. */
function yamlText(value: Yaml, indent: number): string {
  const pad = " ".repeat(indent);
  if (typeof value !== "object") return scalar(value);
  if (isList(value)) return `[${value.map((item) => yamlText(item, 0)).join(", ")}]`;
  return Object.entries(value)
    .map(([key, item]) => {
      if (typeof item !== "object") return `${pad}${key}: ${scalar(item)}`;
      if (!isList(item)) return `${pad}${key}:\n${yamlText(item, indent + 2)}`;
      const nested = item.some((row) => typeof row === "object");
      if (!nested) return `${pad}${key}: ${yamlText(item, 0)}`;
      return `${pad}${key}:\n${item.map((row) => `${pad}  - ${yamlText(row, 0)}`).join("\n")}`;
    })
    .join("\n");
}
function isList(value: Yaml): value is readonly Yaml[] {
  return Array.isArray(value);
}
function scalar(value: string | number | boolean): string {
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}
