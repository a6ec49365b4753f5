/**
 * The command line: argument parsing only. Every verb is a file in `commands/` that adds itself to the program and calls the
 * library; exit codes are 0 success, 1 failure, 2 wrong usage.
 */
import { Command, CommanderError } from "commander";
import { MoeError } from "../util/errors.ts";
import { addChat } from "./commands/chat.ts";
import { addDoctor } from "./commands/doctor.ts";
import { addEval } from "./commands/eval.ts";
import { addExport } from "./commands/export.ts";
import { addGenerate } from "./commands/generate.ts";
import { addInspect } from "./commands/inspect.ts";
import { addPull } from "./commands/pull.ts";
import { addQuantize } from "./commands/quantize.ts";
import { addQuickstart } from "./commands/quickstart.ts";
import { addServe } from "./commands/serve.ts";
import { addTrain } from "./commands/train.ts";
import { addUpcycle } from "./commands/upcycle.ts";
import { version } from "./version.ts";

export function createProgram(): Command {
  const program = new Command("moe")
    .description("Mixture-of-Experts language models, end to end")
    .version(version())
    .exitOverride()
    .showSuggestionAfterError()
    .allowExcessArguments(false);
  for (const add of [
    addQuickstart,
    addDoctor,
    addPull,
    addInspect,
    addUpcycle,
    addTrain,
    addGenerate,
    addChat,
    addServe,
    addEval,
    addExport,
    addQuantize,
  ])
    add(program);
  for (const command of program.commands) command.exitOverride().showSuggestionAfterError().allowExcessArguments(false);
  return program;
}

/** Runs the command and returns its exit code; messages go to standard error. */
export async function runCommand(args: readonly string[]): Promise<0 | 1 | 2> {
  try {
    await createProgram().parseAsync([...args], { from: "user" });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    if (error instanceof MoeError) {
      process.stderr.write(`moe: ${error.message}\n`);
      return error.exitCode;
    }
    process.stderr.write(
      `moe: internal error, please report it\n${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    );
    return 1;
  }
}
