/** `moe pull`: a model from the Hugging Face Hub. */
import type { Command } from "commander";
import { pullModel } from "../../checkpoint/hub.ts";
import { formatBytes, Output } from "../output.ts";

export function addPull(program: Command): void {
  program
    .command("pull")
    .description("download a model from the Hugging Face Hub (HF_ENDPOINT, HF_TOKEN; resumable)")
    .argument("<hub id>", "owner/name")
    .option("--out <folder>", "where to put it (default: models/<owner>--<name>)")
    .option("--file <name>", "GGUF file to take, where a model comes in several")
    .option("--revision <name>", "branch, tag or commit", "main")
    .option("--json", "print one JSON object")
    .action(async (id: string, flags: { out?: string; file?: string; revision: string; json?: boolean }) => {
      const output = new Output({ json: flags.json === true });
      const result = await pullModel(id, {
        revision: flags.revision,
        ...(flags.out === undefined ? {} : { folder: flags.out }),
        ...(flags.file === undefined ? {} : { file: flags.file }),
        onFile: ({ name, bytes, state }) => {
          output.log(`${state} ${name} (${formatBytes(bytes)})`);
        },
      });
      output.result(result, result.folder);
    });
}
