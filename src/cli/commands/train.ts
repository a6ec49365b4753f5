/** `moe train`: a run from a recipe or a configuration file. */
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { Command } from "commander";
import { parseLayout } from "../../config/layout.ts";
import { applySettings, layoutOf, parseRunConfig, type RunConfig } from "../../config/run.ts";
import { TensorBoardWriter } from "../../dashboard/tensorboard.ts";
import { findRecipe, recipes } from "../../recipes/index.ts";
import {
  rankTimeoutMs,
  readRunConfig,
  train,
  trainOnRanks,
  type TrainEvent,
  type TrainRanksOptions,
  type TrainResult,
} from "../../train/index.ts";
import { chooseRanks, commNames, runMpiRank, trafficTable, type Launcher, type RankContext } from "../../parallel/index.ts";
import { fileError, MoeError } from "../../util/errors.ts";
import { dashboardBeside } from "../beside.ts";
import { complain } from "../complain.ts";
import { collected, port, wholeNumber } from "../options.ts";
import { Output } from "../output.ts";
import { openEngine } from "../session.ts";
import { forcedBalanceNote, Reporter } from "../train-reporter.ts";

interface TrainFlags {
  readonly set: readonly string[];
  readonly model?: string;
  readonly text?: string;
  readonly validation?: string;
  readonly out?: string;
  readonly resume?: boolean;
  readonly ranks?: number;
  readonly comm: string;
  readonly layout?: string;
  readonly trace?: string;
  readonly dashboard?: number | true;
  readonly tensorboard?: string | true;
  readonly json?: boolean;
}

export function addTrain(program: Command): void {
  program
    .command("train")
    .description("train a model, or fine-tune a loaded one; resumes bit for bit")
    .argument("<recipe>", `recipe (${Object.keys(recipes).join(", ")}), JSON configuration, or the folder of a run (with --resume)`)
    .option("--model <path>", "recipes: the model to start from")
    .option("--text <path>", "recipes: the training text")
    .option("--validation <path>", "recipes: text for the validation loss")
    .option("--set <key=value>", "change one field of the configuration (repeatable)", collected, [])
    .option("--out <folder>", "run folder (default: runs/<name of the recipe or configuration>)")
    .option("--resume", "continue from the newest checkpoint")
    .option(
      "--ranks <n>",
      "ranks: as many as the layout has (default), threads of this process unless mpirun or srun starts it",
      wholeNumber(1),
    )
    .option("--comm <how>", `what connects ranks: ${commNames.join(", ")} (docs/cluster.md)`, "auto")
    .option("--layout <file>", "JSON of the layout of ranks, as a planner writes it (the field layout of the configuration)")
    .option("--trace <file>", "write a Chrome trace of one step of all ranks (ui.perfetto.dev opens it)")
    .option("--dashboard [port]", "show the run in a browser while it trains (default: any port that is free)", port)
    .option("--tensorboard [folder]", "write event files for TensorBoard, too (default: tensorboard/ in the run folder)")
    .option("--json", "print one JSON object")
    .action(run);
}

async function run(source: string, flags: TrainFlags): Promise<void> {
  const comm = commNames.find((name) => name === flags.comm);
  if (comm === undefined) throw new MoeError("usage", `--comm: expected ${commNames.join(", ")}, got "${flags.comm}"`);
  const choice = chooseRanks({ comm, ranks: flags.ranks });
  if (choice.comm !== "mpi") return await runHere(source, flags);
  const { launcher } = choice;
  const body = (context: RankContext): Promise<void> => runHere(source, flags, { context, launcher });
  return await runMpiRank(launcher, body, { data: null, timeoutMs: rankTimeoutMs, emit: () => undefined, complain });
}

/** This process as one rank of many. */
interface ProcessRank {
  readonly context: RankContext;
  readonly launcher: Launcher;
}

/** From flags to the result, in this process: alone, with ranks as its threads, or as one rank over MPI, of which the first speaks. */
async function runHere(source: string, flags: TrainFlags, over?: ProcessRank): Promise<void> {
  const speaks = over === undefined || over.context.communicator.rank === 0;
  const output = new Output({ json: flags.json === true });
  const { config, runFolder } = resolve(source, flags);
  const controller = new AbortController();
  const stop = (): void => {
    if (speaks) output.log("stopping after this step");
    controller.abort();
  };
  for (const signal of stopSignals) process.once(signal, stop);
  const reporter = new Reporter(output);
  // Of ranks that are processes, the one that speaks shows and writes.
  const { dashboard, tensorboard } = speaks ? flags : {};
  using _ = dashboard === undefined ? null : dashboardBeside(output, runFolder, dashboard === true ? 0 : dashboard);
  const events = eventWriter(tensorboard, runFolder);
  try {
    const onEvent = (event: TrainEvent): void => {
      events?.(event);
      reporter.on(event);
    };
    const options = { config, runFolder, resume: flags.resume === true, signal: controller.signal, onEvent };
    const result = await start({ ...options, ...(flags.trace === undefined ? {} : { traceFile: flags.trace }) }, flags.ranks, over);
    reporter.stop();
    if (speaks) tell(output, result, config, runFolder);
  } finally {
    reporter.stop();
    for (const signal of stopSignals) process.off(signal, stop);
  }
}

/** Writes what a run reports as TensorBoard's events. */
function eventWriter(where: string | true | undefined, runFolder: string): ((event: TrainEvent) => void) | null {
  if (where === undefined) return null;
  const writer = new TensorBoardWriter(where === true ? join(runFolder, "tensorboard") : where);
  return (event) => {
    if (event.type === "step") writer.add({ type: "step", ...event.metrics });
    else if (event.type === "evaluation") writer.add({ type: "evaluation", step: event.step, name: event.name, ...event.evaluation });
    else if (event.type === "similarity") writer.add({ ...event });
  };
}

/** mpirun takes SIGINT and SIGTERM for itself, and ends the ranks; SIGUSR2 it passes on, and Slurm sends it ahead of a time limit if asked. */
const stopSignals = ["SIGINT", "SIGTERM", "SIGUSR2"] as const;

function tell(output: Output, result: TrainResult, config: RunConfig, runFolder: string): void {
  const { state, evaluations, folder, stopped, forcedBalance, traffic } = result;
  if (traffic.length > 0) output.log(["what ranks said to each other, all together:", ...trafficTable(traffic)].join("\n"));
  const losses = Object.entries(evaluations).map(
    ([name, e]) => `${name}: ${e.loss.toFixed(4)} +- ${e.standardError.toFixed(4)} nats a token`,
  );
  const head = stopped
    ? `stopped at step ${state.step} of ${config.numSteps}; continue with --resume`
    : `${state.step} steps, ${state.tokens} tokens in ${state.seconds.toFixed(1)} s`;
  const forced = forcedBalance ? [forcedBalanceNote] : [];
  output.result(
    { runDir: runFolder, checkpoint: folder, stopped, ...state, evaluations, traffic, ...(forcedBalance ? { forcedBalance } : {}) },
    [head, ...forced, ...losses, folder].join("\n"),
  );
}

/** On this thread, on as many as the layout has ranks, or on this process of as many. */
async function start(options: TrainRanksOptions, ranks: number | undefined, over: ProcessRank | undefined): Promise<TrainResult> {
  const { pp, dp, tp } = layoutOf(options.config);
  const size = pp * dp * tp;
  const layout = `the layout has pp ${pp} * dp ${dp} * tp ${tp} = ${size} ranks; change it with --layout, or --set layout.pp=... (dp, tp)`;
  if (over !== undefined) {
    const { context, launcher } = over;
    if (launcher.size !== size) throw new MoeError("usage", `${launcher.command} started ${launcher.size} ranks: ${layout}`);
    return await train({ ...options, engine: context.engine, communicator: context.communicator });
  }
  if (ranks !== undefined && ranks !== size) throw new MoeError("usage", `--ranks ${ranks}: ${layout}`);
  if (size > 1) return await trainOnRanks(options);
  using engine = await openEngine();
  return await train({ ...options, engine });
}

function resolve(source: string, flags: TrainFlags): { config: RunConfig; runFolder: string } {
  if (existsSync(join(source, "config.json")) && existsSync(join(source, "checkpoints"))) {
    if (flags.resume !== true) throw new MoeError("usage", `${source} is the folder of a run: add --resume to continue it`);
    refuseInputs(source, flags);
    if (flags.out !== undefined) {
      const instead = `--set model.from=<checkpoint> with ${join(source, "config.json")} starts another one from its weights`;
      throw new MoeError("usage", `--out ${flags.out}: ${source} is the folder of a run, which goes on where it is; ${instead}`);
    }
    return { config: parseRunConfig(applySettings(withLayout(readRunConfig(source), flags), flags.set), source), runFolder: source };
  }
  const runFolder = flags.out ?? join("runs", basename(source, ".json"));
  if (isFileName(source)) {
    refuseInputs(source, flags);
    return { config: parseRunConfig(applySettings(withLayout(readJson(source), flags), flags.set), source), runFolder };
  }
  return { config: parseRunConfig(applySettings(withLayout(findRecipe(source)(flags), flags), flags.set), `recipe ${source}`), runFolder };
}

/** A configuration with the layout of `--layout`. */
function withLayout(config: unknown, { layout }: TrainFlags): unknown {
  if (layout === undefined || typeof config !== "object" || config === null) return config;
  return { ...config, layout: parseLayout(readJson(layout), layout) };
}

/** A path, not the name of a recipe. */
function isFileName(source: string): boolean {
  return existsSync(source) || source.includes("/") || source.endsWith(".json");
}
function refuseInputs(source: string, { model, text, validation }: TrainFlags): void {
  for (const [name, value] of Object.entries({ model, text, validation })) {
    if (value !== undefined) throw new MoeError("usage", `--${name} is for recipes; ${source} is a configuration: use --set`);
  }
}
function readJson(path: string): unknown {
  if (!existsSync(path)) throw fileError(path, "a JSON configuration or the folder of a run", "no such file");
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw fileError(path, "a JSON configuration", "something that does not read or parse as JSON", error);
  }
}
