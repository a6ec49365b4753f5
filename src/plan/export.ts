/**
 * A plan for the programs that run it: a layout of ours (`moe train --layout`), arguments of Megatron-LM, a FlagScale configuration.
 *
 * Where a program cannot say what the plan says, its notes tell so: nothing is dropped silently. Names and meanings were read in
 * NVIDIA/Megatron-LM (`megatron/training/arguments.py`, `pipeline_parallel_layer_layout.py`) and FlagOpen/FlagScale (`demo_hetero.yaml`
 * and `hetero.yaml` of its examples, `flagscale/train/arguments.py`) in 2026.
 */
import type { ModelConfig } from "../config/model.ts";
import type { LayoutInput } from "../config/layout.ts";
import type { EvaluatedLayout } from "./evaluate.ts";
import { megatronLayout } from "./megatron.ts";

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
  const { model } = context;
  const { pp, tp, ep, etp, sequenceParallel, zero, microBatch } = plan.layout;
  const counts = recomputeCounts(plan);
  const most = Math.max(...counts);
  const args: (string | [string, string | number])[] = [
    ...megatronModel(context),
    ["--micro-batch-size", microBatch],
    ["--global-batch-size", context.batchSequences],
    ["--tensor-model-parallel-size", tp],
    ["--pipeline-model-parallel-size", pp],
    ["--pipeline-model-parallel-layout", `"${megatronLayout(layerCounts(plan))}"`],
    ...(sequenceParallel ? ["--sequence-parallel"] : []),
    ...(zero > 0 ? ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"] : []),
    "--bf16",
  ];
  if (model.moe !== null) args.push(["--expert-model-parallel-size", ep], ["--expert-tensor-parallel-size", etp]);
  if (most > 0) args.push(["--recompute-granularity", "full"], ["--recompute-method", "block"], ["--recompute-num-layers", most]);
  return {
    text: `${args.map((arg) => (typeof arg === "string" ? arg : `${arg[0]} ${arg[1]}`)).join(" \\\n")}\n`,
    notes: megatronNotes(plan, context),
  };
}

function megatronModel({ model, sequenceLength }: ExportContext): (string | [string, string | number])[] {
  const { moe } = model;
  return [
    ["--num-layers", model.numLayers],
    ["--hidden-size", model.hiddenSize],
    ["--ffn-hidden-size", model.ffnSize],
    ["--num-attention-heads", model.numHeads],
    ...(model.numKvHeads === model.numHeads ? [] : (["--group-query-attention", ["--num-query-groups", model.numKvHeads]] as const)).map(
      copied,
    ),
    ["--kv-channels", model.headDim],
    ["--seq-length", sequenceLength],
    ["--max-position-embeddings", model.maxPositions],
    ["--position-embedding-type", "rope"],
    ["--rotary-base", model.ropeTheta],
    ["--normalization", "RMSNorm"],
    ["--norm-epsilon", model.normEps],
    "--swiglu",
    "--disable-bias-linear",
    ...(model.tiedEmbeddings ? [] : ["--untie-embeddings-and-output-weights"]),
    ...(model.qkvBias ? ["--add-qkv-bias"] : []),
    ...(model.qkNorm === "none" ? [] : ["--qk-layernorm"]),
    ...(moe === null
      ? []
      : ([
          ["--num-experts", moe.numExperts],
          ["--moe-router-topk", moe.topK],
          ["--moe-ffn-hidden-size", moe.expertFfnSize],
          ...(moe.layerInterval === 1 ? [] : [["--moe-layer-freq", moe.layerInterval]]),
          "--moe-grouped-gemm",
          ["--moe-token-dispatcher-type", "alltoall"],
        ] as [string, string | number][])),
  ];
}
function copied(arg: string | readonly [string, number]): string | [string, number] {
  return typeof arg === "string" ? arg : [arg[0], arg[1]];
}

function megatronNotes(plan: EvaluatedLayout, { model }: ExportContext): string[] {
  const { pp, tp, ep, zero, interleave } = plan.layout;
  const counts = recomputeCounts(plan);
  const most = Math.max(...counts);
  const notes: string[] = [];
  if (counts.some((count) => count !== most))
    notes.push(
      `Megatron recomputes as many layers on every stage: --recompute-num-layers ${most} is the most that one needs, the plan's are [${counts.join(", ")}]`,
    );
  if (model.numHeads % tp !== 0) notes.push(`Megatron needs heads that divide by tp: ${model.numHeads} over ${tp}`);
  if (model.moe !== null && model.moe.numExperts % ep !== 0)
    notes.push(`Megatron needs experts that divide by ep: ${model.moe.numExperts} over ${ep}`);
  if (model.moe?.gateNormalization !== null && model.moe !== null) notes.push("Megatron has no gating logit normalization");
  if (interleave > 1 && plan.numMicroBatches % pp !== 0)
    notes.push(
      `older releases of Megatron refuse interleaved stages where the micro-batches (${plan.numMicroBatches}) do not divide by pp (${pp})`,
    );
  if (zero > 1)
    notes.push(
      `ZeRO-${zero} is Megatron's FSDP: --use-megatron-fsdp --data-parallel-sharding-strategy ${zero === 2 ? "optim_grads" : "optim_grads_params"}`,
    );
  if (plan.schedule === "zeroBubble") notes.push("Megatron-LM's main branch has no zero-bubble schedule: it runs 1F1B");
  return notes;
}

type Yaml = string | number | boolean | readonly Yaml[] | { readonly [key: string]: Yaml };

/** A FlagScale training configuration: the `system` and `model` parts that the plan decides, with its heterogeneous pipeline. */
export function flagScaleConfig(plan: EvaluatedLayout, context: ExportContext): ExportedPlan {
  const { pp, dp, tp, ep, etp, microBatch, interleave, sequenceParallel, zero } = plan.layout;
  const { model, sequenceLength, batchSequences, devices } = context;
  const notes: string[] = [];
  if (interleave > 1)
    notes.push(
      "FlagScale's heterogeneous mode has no interleaved stages: the configuration has the plain pipeline, layers of a rank together",
    );
  const perRank = <T>(list: readonly T[], merge: (own: readonly T[]) => T): T[] =>
    Array.from({ length: pp }, (_, rank) => merge(list.filter((_, s) => s % pp === rank)));
  const sum = (own: readonly number[]): number => own.reduce((a, b) => a + b, 0);
  const layers = perRank(layerCounts(plan), sum);
  const recompute = perRank(recomputeCounts(plan), sum);
  const meshes = deviceRuns(devices, pp);
  const M = plan.numMicroBatches;
  const perStage = (valueOf: (count: number) => number): Yaml[] =>
    runs(recompute.map(valueOf)).map(({ count, value }) => [count, M, value]);
  const config: Yaml = {
    system: {
      tensor_model_parallel_size: tp,
      pipeline_model_parallel_size: pp,
      ...(model.moe === null ? {} : { expert_model_parallel_size: ep, expert_tensor_parallel_size: etp }),
      context_parallel_size: 1,
      disable_bias_linear: true,
      sequence_parallel: sequenceParallel,
      use_distributed_optimizer: zero > 0,
      ...(zero > 0 ? { overlap_grad_reduce: true, overlap_param_gather: true } : {}),
      precision: { bf16: true, attention_softmax_in_fp32: true, accumulate_allreduce_grads_in_fp32: true },
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
      ...(sum(recompute) === 0
        ? {}
        : {
            recompute: {
              recompute_granularity: "full",
              recompute_method: "block",
              recompute_num_layers: Math.max(...recompute),
              // Rows [stages, micro-batches, value]: granularity 1 is full; method 1 is block (the first layers).
              recompute_granularity_per_stage_micro_batch: perStage((n) => (n > 0 ? 1 : 0)),
              recompute_method_per_stage_micro_batch: perStage(() => 1),
              recompute_num_layers_per_stage_micro_batch: perStage((n) => n),
            },
          }),
    },
    model: flagScaleModel(model, { sequenceLength, batchSequences, microBatch }),
  };
  return { text: `${yamlText(config, 0)}\n`, notes };
}

function flagScaleModel(model: ModelConfig, sizes: { sequenceLength: number; batchSequences: number; microBatch: number }): Yaml {
  const { moe } = model;
  return {
    transformer_impl: "transformer_engine",
    num_layers: model.numLayers,
    hidden_size: model.hiddenSize,
    ffn_hidden_size: model.ffnSize,
    num_attention_heads: model.numHeads,
    ...(model.numKvHeads === model.numHeads ? {} : { group_query_attention: true, num_query_groups: model.numKvHeads }),
    seq_length: sizes.sequenceLength,
    max_position_embeddings: model.maxPositions,
    norm_epsilon: model.normEps,
    use_rotary_position_embeddings: true,
    rotary_base: model.ropeTheta,
    no_position_embedding: true,
    swiglu: true,
    normalization: "RMSNorm",
    untie_embeddings_and_output_weights: !model.tiedEmbeddings,
    init_method_std: model.initStd,
    ...(moe === null
      ? {}
      : {
          num_experts: moe.numExperts,
          moe_router_topk: moe.topK,
          moe_ffn_hidden_size: moe.expertFfnSize,
          ...(moe.layerInterval === 1 ? {} : { moe_layer_freq: moe.layerInterval }),
        }),
    micro_batch_size: sizes.microBatch,
    global_batch_size: sizes.batchSequences,
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
