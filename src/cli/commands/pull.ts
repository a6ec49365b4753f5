/** `moe pull`: a model from the Hugging Face Hub. */
import type { Command } from "commander";
import { pullModel } from "../../checkpoint/hub.ts";
import { formatBytes, Output, type Progress } from "../output.ts";

/** Bytes from which on a file gets a bar. */
const longDownload = 16 << 20;

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
      let bar: { readonly name: string; readonly progress: Progress } | null = null;
      const result = await pullModel(id, {
        revision: flags.revision,
        ...(flags.out === undefined ? {} : { folder: flags.out }),
        ...(flags.file === undefined ? {} : { file: flags.file }),
        onProgress: (name, done, total) => {
          if (total < longDownload) return;
          if (bar?.name !== name) bar = { name, progress: output.progress(name, total) };
          bar.progress.update(done);
        },
        onFile: ({ name, bytes, state }) => {
          bar?.progress.stop();
          bar = null;
          output.log(`${state} ${name} (${formatBytes(bytes)})`);
        },
      });
      output.result(result, result.folder);
    });
}
