/** `moe export`: a model in another program's format. */
import { Option, type Command } from "commander";
import { loadTokenizer } from "../../checkpoint/tokenizer.ts";
import { exportModel, type GgufExportType } from "../../model/index.ts";
import { formatBytes, Output } from "../output.ts";

const types: Readonly<Record<string, GgufExportType>> = { f32: "F32", f16: "F16", bf16: "BF16" };

export function addExport(program: Command): void {
  program
    .command("export")
    .description("write a model in another program's format")
    .argument("<model>", "folder with safetensors, or GGUF file")
    .argument("<out>", "file to write")
    .addOption(new Option("--format <format>", "format of the output").choices(["gguf"]).default("gguf"))
    .addOption(new Option("--dtype <type>", "element type of matrices (default: as stored)").choices(["f32", "f16", "bf16"]))
    .option("--json", "print one JSON object")
    .action(async (model: string, out: string, flags: { dtype?: "f32" | "f16" | "bf16"; json?: boolean }) => {
      const tokenizer = await loadTokenizer(model);
      const type = types[flags.dtype ?? ""];
      const result = exportModel(model, out, { tokenizer, ...(type === undefined ? {} : { type }) });
      const text = `${out}: ${result.architecture} in ${result.type}, ${result.numTensors} tensors, ${formatBytes(result.numBytes)}`;
      new Output({ json: flags.json === true }).result(result, text);
    });
}
