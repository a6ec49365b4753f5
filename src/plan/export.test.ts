import { execFileSync } from "node:child_process";
import { describe, expect, test } from "vitest";
import { findClusterPreset, withNumDevices } from "../config/cluster.ts";
import { checkLayoutBatch, checkLayoutModel, completeLayout, parseLayout, stagesOf } from "../config/layout.ts";
import { modelPresets } from "../config/model-presets.ts";
import type { ModelConfig } from "../config/model.ts";
import { flagScaleConfig, megatronArguments, trainingLayout, type ExportContext } from "./export.ts";
import type { FixedLayout } from "./layouts.ts";
import { parseMegatronLayout } from "./megatron.ts";
import { planTraining, type PlanResult } from "./plan.ts";
import { softwarePresets } from "./software.ts";
import type { Software } from "./types.ts";

const skywork = modelPresets["skywork-moe"];
type More = { readonly layers?: number[]; readonly recompute?: number[]; readonly software?: Software };
function planned(model: ModelConfig, fixed: FixedLayout, more: More = {}): PlanResult {
  const cluster = withNumDevices(findClusterPreset("a800"), 96);
  return planTraining({ model, cluster, sequenceLength: 4096, batchTokens: 96 * 4096, fixed, objective: "time", ...more });
}
const context = (model: ModelConfig): ExportContext => ({ model, sequenceLength: 4096, batchSequences: 96, devices: ["A800"] });
const edp = { pp: 12, dp: 2, tp: 4, ep: 4, etp: 1, microBatch: 1, interleave: 1 } as const;
const given = { layers: [4, 4, 4, 4, 5, 5, 5, 5, 5, 4, 4, 3], recompute: [4, 4, 3, 2, 1, 1, 0, 0, 0, 0, 0, 0] };

describe("a layout for our trainer", () => {
  test.each([
    ["EDP", edp],
    ["EP", { ...edp, ep: 8 }],
    ["ETP", { ...edp, ep: 2, etp: 4 }],
    ["TP", { ...edp, ep: 1, etp: 4 }],
  ] as const)("of %s is what `moe train --layout` accepts, with the plan's degrees and stages", (strategy, fixed) => {
    const { best } = planned(skywork, fixed);
    const { layout, notes } = trainingLayout(best, skywork);
    expect(layout.strategy).toBe(strategy);
    const parsed = completeLayout(parseLayout(JSON.parse(JSON.stringify(layout))), "layout");
    expect(checkLayoutModel(parsed, skywork)).toEqual([]);
    checkLayoutBatch(parsed, { batchSequences: 96, microBatchSequences: best.layout.microBatch, balanceGroupSequences: 1 }, "layout");
    expect(parsed).toMatchObject({ pp: 12, dp: 2, tp: 4, ep: fixed.ep, etp: fixed.etp, sequenceParallel: true, zero: 1 });
    const stages = stagesOf(parsed, 52, 0);
    expect(stages.map(({ firstLayer, numLayers, recompute }) => [firstLayer, numLayers, recompute])).toEqual(
      best.stages.map(({ firstLayer, numLayers, fullRecompute }) => [firstLayer, numLayers, fullRecompute]),
    );
    expect(notes).toEqual([]);
  });

  test("of interleaved stages, of a dense model and of every expert on every rank is accepted, too", () => {
    const dense = modelPresets["skywork-13b"];
    const cases: [ModelConfig, FixedLayout][] = [
      [skywork, { ...edp, interleave: 2 }],
      [dense, { pp: 12, dp: 2, tp: 4, microBatch: 1, interleave: 1 }],
      [
        { ...skywork, numLayers: 12 },
        { ...edp, ep: 1 },
      ],
    ];
    for (const [model, fixed] of cases) {
      const layout = completeLayout(parseLayout(trainingLayout(planned(model, fixed).best, model).layout), "layout");
      expect(checkLayoutModel(layout, model)).toEqual([]);
      expect(layout.interleave).toBe(fixed.interleave);
    }
  });

  test("says what the trainer does otherwise", () => {
    const { best } = planned(modelPresets["skywork-13b"], { pp: 1, tp: 8, dp: 12, microBatch: 1, zero: 3 });
    const { layout, notes } = trainingLayout(best, modelPresets["skywork-13b"]);
    expect(layout.zero).toBe(1);
    expect(notes[0]).toMatch(/ZeRO-3 is not built here/);
  });
});

describe("arguments for Megatron-LM", () => {
  test("have the layout, which reads back as the plan's stages, and degrees", () => {
    const { best } = planned(skywork, edp, { layers: given.layers });
    const { text } = megatronArguments(best, context(skywork));
    const args = new Map(text.split(/ ?\\?\n/).map((line) => [line.split(" ")[0] ?? "", line.split(" ").slice(1).join(" ")]));
    const layout = args.get("--pipeline-model-parallel-layout") ?? "";
    expect(parseMegatronLayout(layout.replaceAll('"', "")).map(({ numLayers }) => numLayers)).toEqual(given.layers);
    expect(Object.fromEntries(args)).toMatchObject({
      "--num-layers": "52",
      "--num-experts": "16",
      "--expert-model-parallel-size": "4",
      "--expert-tensor-parallel-size": "1",
      "--tensor-model-parallel-size": "4",
      "--pipeline-model-parallel-size": "12",
      "--global-batch-size": "96",
      "--micro-batch-size": "1",
      "--sequence-parallel": "",
      "--use-distributed-optimizer": "",
    });
  });

  test("recompute what the neediest stage needs, and say that the plan's counts differ", () => {
    const { best } = planned(skywork, edp, given);
    const { text, notes } = megatronArguments(best, context(skywork));
    expect(text).toContain("--recompute-granularity full");
    expect(text).toContain("--recompute-num-layers 4");
    expect(notes.join("\n")).toContain("the plan's are [4, 4, 3, 2, 1, 1, 0, 0, 0, 0, 0, 0]");
    expect(notes.join("\n")).toContain("gating logit normalization");
  });
});

/** A model with everything that has a word in Megatron. Interval 3: layers 2, 5, 8, ... of 8 have experts. */
const sayable: ModelConfig = {
  ...modelPresets["mixtral-8x7b"],
  numLayers: 8,
  qkvBias: true,
  qkNorm: "head",
  slidingWindow: { size: 1024, firstLayer: 3 },
  ropeScaling: { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 },
  moe: {
    ...modelPresets["mixtral-8x7b"].moe,
    layerInterval: 3,
    scoring: "sigmoid",
    selectionBias: true,
    routedScale: 2.5,
    groups: { numGroups: 2, topGroups: 1 },
    sharedExpert: { ffnSize: 2048, gate: true, scale: 1 },
  },
};
/** One with everything that has none. */
const unsayable: ModelConfig = {
  ...sayable,
  qkNorm: "all",
  ropeScaling: { type: "dynamic", factor: 2 },
  moe: {
    ...modelPresets["mixtral-8x7b"].moe,
    gateNormalization: { lambda: 1, eps: 0, unbiased: true },
    gateLayers: 2,
    inputScale: 2,
    selectionBias: true,
    groups: { numGroups: 2, topGroups: 2 },
    sharedExpert: { ffnSize: 2048, gate: true, scale: 0.5 },
  },
};
const small: FixedLayout = { pp: 2, dp: 12, tp: 4, ep: 4, etp: 1, microBatch: 1, interleave: 1 };

describe("of a model and its software nothing is dropped silently", () => {
  const { best } = planned(sayable, small);
  const both = [megatronArguments(best, context(sayable)), flagScaleConfig(best, context(sayable))].map(({ text }) => text);

  // Names and meanings: megatron/training/arguments.py and megatron/core/transformer/transformer_config.py, NVIDIA/Megatron-LM d98e8a64.
  test.each([
    ["vocab_size", 32_000],
    ["kv_channels", 128],
    ["add_qkv_bias", true],
    ["qk_layernorm", true],
    // 1023 keys before a query's own, in all layers but the first three.
    ["window_size", "1023,0"],
    ["window_attn_skip_freq", "[0]*3+[1]*5"],
    ["use_rope_scaling", true],
    ["rope_scaling_factor", 8],
    ["moe_layer_freq", "[0,0,1]*2+[0,0]"],
    ["moe_router_score_function", "sigmoid"],
    ["moe_router_enable_expert_bias", true],
    ["moe_router_topk_scaling_factor", 2.5],
    ["moe_router_num_groups", 2],
    ["moe_router_group_topk", 1],
    ["moe_shared_expert_intermediate_size", 2048],
    ["moe_shared_expert_gate", true],
    ["bf16", true],
    ["attention_dropout", 0],
  ] as const)("%s is in both", (key, value) => {
    const shell = typeof value === "string" && value.includes("[") ? `"${value}"` : value;
    expect(both[0]).toMatch(line(`--${key.replaceAll("_", "-")}${value === true ? "" : ` ${shell}`}`));
    expect(both[1]).toMatch(line(`${key}: ${JSON.stringify(value)}`));
  });

  test.each([
    ["rows of the chosen travel", { ep: 4, etp: 1 }, "alltoall"],
    ["all tokens are gathered", { ep: 1, etp: 4 }, "allgather"],
  ])("where %s to the experts, both are told", (_, experts, dispatcher) => {
    const plan = planned(sayable, { ...small, ...experts }).best;
    expect(megatronArguments(plan, context(sayable)).text).toContain(`--moe-token-dispatcher-type ${dispatcher}`);
    expect(flagScaleConfig(plan, context(sayable)).text).toContain(`moe_token_dispatcher_type: "${dispatcher}"`);
  });

  test("what has no word is in the notes of both", () => {
    const result = planned(unsayable, { ...small, sequenceParallel: false }).best;
    for (const { notes } of [megatronArguments(result, context(unsayable)), flagScaleConfig(result, context(unsayable))]) {
      for (const part of [
        "gating logit",
        "2 layers",
        "experts' input",
        "shared expert: the model does by 0.5",
        "bias for choosing",
        "all heads",
      ])
        expect(notes.join("\n")).toContain(part);
      for (const part of ["rotary embeddings", "group of experts", "pads it: 32256 rows for 32000", "sequence parallelism for experts"])
        expect(notes.join("\n")).toContain(part);
    }
  });

  test.each([
    ["megatron", ["bf16", "accumulate_allreduce_grads_in_fp32", "attention_dropout"], ["fp16", "attention_backend"]],
    ["megatron-deepspeed", ["fp16", "attention_backend"], ["bf16", "accumulate_allreduce_grads_in_fp32", "attention_dropout"]],
    ["moe.ts", ["attention_dropout"], ["bf16", "fp16", "accumulate_allreduce_grads_in_fp32"]],
  ] as const)("number types, attention and dropout are those of %s", (name, present, absent) => {
    const software = softwarePresets[name];
    const of = { ...context(sayable), software };
    const [megatron, flagScale] = [megatronArguments(best, of).text, flagScaleConfig(best, of).text];
    for (const key of present) {
      expect(megatron).toContain(`--${key.replaceAll("_", "-")}`);
      expect(flagScale).toContain(`${key}:`);
    }
    for (const key of absent) {
      expect(megatron).not.toContain(`--${key.replaceAll("_", "-")}`);
      expect(flagScale).not.toContain(`${key}:`);
    }
  });
});

describe("selective recomputation", () => {
  const dense = modelPresets["skywork-13b"];
  const { best } = planned(dense, { pp: 4, dp: 6, tp: 4, microBatch: 1, interleave: 1 }, { layers: [13, 13, 13, 13] });
  const recomputing = (full: readonly number[], selective: readonly number[]): typeof best => ({
    ...best,
    stages: best.stages.map((stage, s) => ({ ...stage, fullRecompute: full[s] ?? 0, selectiveRecompute: selective[s] ?? 0 })),
  });

  test("of every layer is said as it is", () => {
    const plan = recomputing([], [13, 13, 13, 13]);
    const [megatron, flagScale] = [megatronArguments(plan, context(dense)), flagScaleConfig(plan, context(dense))];
    expect(megatron.text).toContain("--recompute-granularity selective");
    expect(megatron.text).not.toContain("--recompute-num-layers");
    expect(flagScale.text).toContain('recompute_granularity: "selective"');
    expect(flagScale.text).not.toContain("per_stage_micro_batch");
    for (const { notes } of [megatron, flagScale]) expect(notes.join()).not.toContain("recompute");
  });

  test("of some layers is that of all, which notes say", () => {
    const plan = recomputing([], [13, 5, 0, 0]);
    for (const { text, notes } of [megatronArguments(plan, context(dense)), flagScaleConfig(plan, context(dense))]) {
      expect(text).toMatch(/recompute.granularity:? "?selective/);
      expect(notes).toContain("Megatron recomputes attention in every layer: the plan does in [13, 5, 0, 0] of [13, 13, 13, 13]");
    }
  });

  test("beside whole layers becomes that of whole layers, which needs no more memory", () => {
    const plan = recomputing([2, 0, 0, 0], [11, 4, 0, 0]);
    const [megatron, flagScale] = [megatronArguments(plan, context(dense)), flagScaleConfig(plan, context(dense))];
    expect(megatron.text).toContain("--recompute-granularity full");
    expect(megatron.text).toContain("--recompute-num-layers 13");
    expect(flagScale.text).toMatch(/recompute_num_layers_per_stage_micro_batch:\n +- \[1, 16, 13\]\n +- \[1, 16, 4\]\n +- \[2, 16, 0\]/);
    for (const { notes } of [megatron, flagScale])
      expect(notes.join("\n")).toContain("[13, 4, 0, 0] layers as a whole, of [11, 4, 0, 0] of which the plan recomputes attention only");
  });
});

/** A whole line with this text, whatever is around it. */
function line(text: string): RegExp {
  return new RegExp(`^ *${text.replaceAll(/[$()*+.?[\\\]^{|}]/g, "\\$&")}( \\\\)?$`, "m");
}

describe("a configuration for FlagScale", () => {
  const { best } = planned(skywork, edp, given);
  const { text, notes } = flagScaleConfig(best, context(skywork));

  test("has the split, one mesh a kind of device, and recomputation by stage and micro-batch", () => {
    expect(notes).toEqual([
      "Megatron takes the vocabulary from its tokenizer and pads it: 65536 rows for 65532",
      "Megatron has no gating logit normalization",
    ]);
    expect(text).toContain("hetero_pipeline_layer_split: [4, 4, 4, 4, 5, 5, 5, 5, 5, 4, 4, 3]");
    expect(text).toContain("hetero_process_meshes: [4, 1, 4, 2, 12]");
    expect(text).toContain('hetero_device_types: ["A800"]');
    // 48 micro-batches; rows are [stages, micro-batches, value].
    expect(text).toMatch(
      /recompute_num_layers_per_stage_micro_batch:\n +- \[2, 48, 4\]\n +- \[1, 48, 3\]\n +- \[1, 48, 2\]\n +- \[2, 48, 1\]\n +- \[6, 48, 0\]/,
    );
    expect(text).toMatch(/recompute_granularity_per_stage_micro_batch:\n +- \[6, 48, 1\]\n +- \[6, 48, 0\]/);
  });

  test("has a mesh for every run of equal devices", () => {
    const devices = [...Array<string>(5).fill("A800"), ...Array<string>(7).fill("H800")];
    const mixed = flagScaleConfig(best, { ...context(skywork), devices }).text;
    expect(mixed).toContain("hetero_process_meshes: [4, 1, 4, 2, 5, 4, 1, 4, 2, 7]");
    expect(mixed).toContain('hetero_device_types: ["A800", "H800"]');
  });

  const python = process.env["MOE_PYTHON"] ?? "";
  test.skipIf(python === "")(`is YAML to a parser that is not ours${python === "" ? " (skipped: MOE_PYTHON names no Python)" : ""}`, () => {
    const program = "import sys, json, yaml; print(json.dumps(yaml.safe_load(sys.stdin.read())))";
    const parsed = JSON.parse(execFileSync(python, ["-c", program], { input: text, encoding: "utf8" })) as {
      system: { hetero: Record<string, unknown>; recompute: Record<string, unknown> };
      model: Record<string, unknown>;
    };
    expect(parsed.system.hetero["hetero_pipeline_layer_split"]).toEqual(given.layers);
    expect(parsed.system.recompute["recompute_num_layers_per_stage_micro_batch"]).toEqual([
      [2, 48, 4],
      [1, 48, 3],
      [1, 48, 2],
      [2, 48, 1],
      [6, 48, 0],
    ]);
    expect(parsed.model).toMatchObject({ num_layers: 52, num_experts: 16, norm_epsilon: 1e-6, swiglu: true });
  });
});
