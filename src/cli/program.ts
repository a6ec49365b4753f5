/**
 * The command line: argument parsing only. Every verb is a file in `commands/` that adds itself to the program and calls the
 * library; exit codes are 0 success, 1 failure, 2 wrong usage.
 *
 * A verb's file is imported when it is asked for (all are, for the help and for a verb that nobody knows): `moe plan` answers before the
 * compute engine and the server would have been read.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { Command, CommanderError } from "commander";
import { behindFirstMs, rankBehindFirst } from "../parallel/launcher.ts";
import { MoeError } from "../util/errors.ts";
import { complain } from "./complain.ts";
import { addExamples } from "./examples.ts";
import { version } from "./version.ts";

type AddCommand = (program: Command) => void;

/** In the order of the help. */
const verbs: Readonly<Record<string, () => Promise<AddCommand>>> = {
  quickstart: async () => (await import("./commands/quickstart.ts")).addQuickstart,
  doctor: async () => (await import("./commands/doctor.ts")).addDoctor,
  pull: async () => (await import("./commands/pull.ts")).addPull,
  inspect: async () => (await import("./commands/inspect.ts")).addInspect,
  upcycle: async () => (await import("./commands/upcycle.ts")).addUpcycle,
  train: async () => (await import("./commands/train.ts")).addTrain,
  generate: async () => (await import("./commands/generate.ts")).addGenerate,
  chat: async () => (await import("./commands/chat.ts")).addChat,
  serve: async () => (await import("./commands/serve.ts")).addServe,
  eval: async () => (await import("./commands/eval.ts")).addEval,
  export: async () => (await import("./commands/export.ts")).addExport,
  plan: async () => (await import("./commands/plan.ts")).addPlan,
  quantize: async () => (await import("./commands/quantize.ts")).addQuantize,
  dashboard: async () => (await import("./commands/dashboard.ts")).addDashboard,
  query: async () => (await import("./commands/query.ts")).addQuery,
  completion: async () => (await import("./commands/completion.ts")).addCompletion,
};

/** The program with all its verbs, or with `verb` alone where that is one. */
export async function createProgram(verb?: string): Promise<Command> {
  const program = new Command("moe")
    .description("Mixture-of-Experts language models, end to end")
    .version(version())
    .exitOverride()
    .showSuggestionAfterError()
    // Options belong to the verb that they stand behind: `moe plan` and `moe plan calibrate` both have a --cluster.
    .enablePositionalOptions()
    .allowExcessArguments(false);
  const only = verb !== undefined && Object.hasOwn(verbs, verb) ? verbs[verb] : undefined;
  for (const load of only === undefined ? Object.values(verbs) : [only]) (await load())(program);
  for (const command of program.commands.flatMap((verb) => [verb, ...verb.commands]))
    command.exitOverride().showSuggestionAfterError().allowExcessArguments(false);
  for (const command of program.commands) addExamples(command);
  return program;
}

/** Runs the command and returns its exit code; messages go to standard error. */
export async function runCommand(args: readonly string[]): Promise<0 | 1 | 2> {
  const behind = rankBehindFirst();
  try {
    const program = await createProgram(args[0]);
    if (behind !== null) program.commands.forEach((command) => command.configureOutput({ writeErr: () => undefined }));
    await program.parseAsync([...args], { from: "user" });
    return 0;
  } catch (error) {
    // All ranks of a job find the same fault: the first speaks, and the launcher ends the others meanwhile.
    if (behind !== null) await sleep(behindFirstMs);
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    return complain(behind !== null && error instanceof MoeError ? new MoeError(error.kind, `rank ${behind}: ${error.message}`) : error);
  }
}
