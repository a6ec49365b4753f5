/** `moe inspect`: what is in a checkpoint, without loading it. */
import type { Command } from "commander";
import { inspectModel } from "../../model/index.ts";
import { formatBytes, formatCount, formatTable, Output } from "../output.ts";

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
        ["experts", config.moe === null ? "none" : `${config.moe.numExperts}, top-${config.moe.topK}`],
      ];
      const tensors = report.tensors.map(({ name, dtype, shape }) => [name, dtype, `[${shape.join(", ")}]`]);
      new Output({ json: options.json === true }).result(report, `${formatTable(facts)}\n\n${formatTable(tensors)}`);
    });
}
