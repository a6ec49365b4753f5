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

const skywork = modelPresets["skywork-moe"];
function planned(model: ModelConfig, fixed: FixedLayout, more: { layers?: number[]; recompute?: number[] } = {}): PlanResult {
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

describe("a configuration for FlagScale", () => {
  const { best } = planned(skywork, edp, given);
  const { text, notes } = flagScaleConfig(best, context(skywork));

  test("has the split, one mesh a kind of device, and recomputation by stage and micro-batch", () => {
    expect(notes).toEqual([]);
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
