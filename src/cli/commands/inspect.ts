/** `moe inspect`: what is in a checkpoint, without loading it. */
import type { Command } from "commander";
import type { ModelConfig } from "../../config/model.ts";
import { inspectModel } from "../../model/index.ts";
import { formatBytes, formatCount, formatTable, Output } from "../output.ts";

/** What the routers and experts are, in a line: only what differs from a plain top-k softmax is named. */
function expertsOf({ moe, numLayers }: ModelConfig): string {
  if (moe === null) return "none";
  const { gateNormalization: norm, groups, sharedExpert: shared } = moe;
  return [
    `${moe.numExperts}, top-${moe.topK}`,
    `width ${moe.expertFfnSize}`,
    moe.layerInterval === 1 ? null : `in ${Math.floor(numLayers / moe.layerInterval)} of ${numLayers} layers`,
    moe.scoring === "softmax" ? null : moe.scoring === "sigmoid" ? "sigmoid scores" : "softmax of the chosen",
    moe.renormalize ? null : "weights not renormalized",
    moe.routedScale === 1 ? null : `weights times ${moe.routedScale}`,
    norm === null ? null : `gating normalization ${norm.lambda}`,
    moe.gateLayers === 1 ? null : "two-layer gate",
    groups === null ? null : `${groups.topGroups} of ${groups.numGroups} groups`,
    moe.selectionBias ? "selection bias" : null,
    moe.inputScale === 1 ? null : `input times ${moe.inputScale}`,
    shared === null ? null : `shared expert ${shared.ffnSize}${shared.gate ? " with a gate" : ""}`,
  ]
    .filter((part) => part !== null)
    .join(", ");
}

export function addInspect(program: Command): void {
  program
    .command("inspect")
    .description("architecture, parameters total and active, bytes, tensors")
    .argument("<model>", "folder with safetensors, or GGUF file")
    .option("--json", "print one JSON object")
    .action((path: string, options: { json?: boolean }) => {
      const report = inspectModel(path);
      const { config } = report;
      const facts = [
        ["architecture", report.architecture],
        ["parameters", `${formatCount(report.numParams)} (${report.numParams})`],
        ["active a token", `${formatCount(report.numActiveParams)} (${report.numActiveParams})`],
        ["bytes", formatBytes(report.numBytes)],
        ["layers, hidden, FFN", `${config.numLayers}, ${config.hiddenSize}, ${config.ffnSize}`],
        ["heads, KV heads, head size", `${config.numHeads}, ${config.numKvHeads}, ${config.headDim}`],
        ["vocabulary, positions", `${config.vocabSize}, ${config.maxPositions}`],
        ["experts", expertsOf(config)],
      ];
      const tensors = report.tensors.map(({ name, dtype, shape }) => [name, dtype, `[${shape.join(", ")}]`]);
      new Output({ json: options.json === true }).result(report, `${formatTable(facts)}\n\n${formatTable(tensors)}`);
    });
}
