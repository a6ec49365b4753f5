/** `moe serve`: an OpenAI-compatible server of one model. */
import { basename, resolve } from "node:path";
import { Option, type Command } from "commander";
import { describePlan, gigabytes } from "../../generate/parallel.ts";
import { cacheDtypes, type ActivationChoice, type CacheDType } from "../../model/index.ts";
import { runMpiRank, type CommName, type Launcher } from "../../parallel/index.ts";
import {
  makeLog,
  planServing,
  serveBehindFirst,
  startServer,
  type EngineSettings,
  type TensorParallelSettings,
} from "../../server/index.ts";
import { MoeError } from "../../util/errors.ts";
import { complain } from "../complain.ts";
import { decimal, numbers, wholeNumber } from "../options.ts";
import { formatBytes, formatCount, Output } from "../output.ts";
import { activationsOption, modelDtype } from "../session.ts";
import { chooseTensorRanks, commOption } from "../tensor-ranks.ts";
import { version } from "../version.ts";

interface ServeFlags {
  readonly port: number;
  readonly host: string;
  readonly name?: string;
  readonly maxBatch: number;
  readonly maxContext?: number;
  readonly maxQueue: number;
  readonly timeout: number;
  readonly drainTimeout: number;
  readonly dtype?: string;
  readonly kvDtype?: CacheDType;
  readonly activations: ActivationChoice;
  readonly kvMemory?: number;
  readonly speculate?: "ngram";
  readonly draftModel?: string;
  readonly tp?: number;
  readonly comm: CommName;
  readonly tpWeights?: number[];
  readonly tpMemory?: number[];
  readonly apiKey?: string;
  readonly jsonLogs?: boolean;
}

export function addServe(program: Command): void {
  program
    .command("serve")
    .description("serve a model over HTTP, as OpenAI's API does; a chat page at /")
    .argument("<model>", "folder with safetensors, or GGUF file")
    .option("--port <n>", "port; 0: any that is free", port, 8000)
    .option("--host <address>", "address to listen on; others than the machine itself reach it only at another than this", "127.0.0.1")
    .option("--name <name>", "what requests call the model (default: the name of its folder or file)")
    .option("--max-batch <n>", "answers made at once", wholeNumber(1), 16)
    .option("--max-context <n>", "tokens of prompt and answer (default: the model's positions, 32768 at most)", wholeNumber(2))
    .option("--max-queue <n>", "answers that may wait; beyond them requests get 429", wholeNumber(0), 128)
    .option("--timeout <seconds>", "an answer may take so long", decimal(0.001), 600)
    .option("--drain-timeout <seconds>", "at the end, answers under way get so long", decimal(0), 30)
    .option("--dtype <type>", "compute in f32 or bf16 (default: as stored)")
    .addOption(new Option("--kv-dtype <type>", "type of the KV cache (default: the model's)").choices(cacheDtypes))
    .addOption(activationsOption())
    .option(
      "--kv-memory <MiB>",
      "memory of the KV cache (default: what max-batch contexts need, half of what is free at most)",
      wholeNumber(1),
    )
    .addOption(new Option("--speculate <how>", "guess tokens ahead; changes speed only").choices(["ngram"]))
    .option("--draft-model <path>", "a smaller model with the same vocabulary that guesses tokens ahead")
    .option(
      "--tp <n>",
      "cut the model over n ranks, threads of this process or processes that mpirun started; prints the plan",
      wholeNumber(1),
    )
    .addOption(commOption())
    .option("--tp-weights <list>", "relative speed of each rank, for example 2,1,1 (default: equal)", numbers(0))
    .option("--tp-memory <list>", "GB that each rank can hold of weights and cache, for example 24,24,16 (default: no limit)", numbers(0))
    .addOption(new Option("--api-key <key>", "asked for on every route but /health").env("MOE_API_KEY"))
    .option("--json-logs", "log one JSON object a line")
    .action(serve);
}

function port(text: string): number {
  const value = wholeNumber(0)(text);
  if (value > 65_535) throw new MoeError("usage", `--port: expected 0 to 65535, got ${text}`);
  return value;
}

function tensorParallel(
  { tpWeights, tpMemory }: ServeFlags,
  tp: number | undefined,
  launcher: Launcher | null,
): TensorParallelSettings | null {
  for (const [option, list] of Object.entries({ "--tp-weights": tpWeights, "--tp-memory": tpMemory })) {
    if (list !== undefined && list.length !== tp)
      throw new MoeError("usage", `${option}: expected a number for each rank of --tp, got ${list.length} for ${tp ?? "none"}`);
  }
  if (tp === undefined) return null;
  return { ranks: tp, launcher, weights: tpWeights ?? null, memoryBytes: tpMemory?.map((gigabytes) => gigabytes * 1e9) ?? null };
}

/** SIGUSR2 too: mpirun passes it on, and SIGTERM and SIGINT it takes for itself. */
const stopSignals = ["SIGTERM", "SIGINT", "SIGUSR2"] as const;

/** A rank behind the first, which alone speaks HTTP and says when all end. */
async function serveBehind(launcher: Launcher): Promise<void> {
  for (const signal of stopSignals) process.on(signal, () => undefined);
  await runMpiRank(launcher, serveBehindFirst, { data: null, emit: () => undefined, complain });
}

async function serve(modelPath: string, flags: ServeFlags): Promise<void> {
  const choice = chooseTensorRanks(flags);
  const launcher = choice.comm === "mpi" ? choice.launcher : null;
  if (launcher !== null && launcher.rank > 0) return await serveBehind(launcher);
  const output = new Output();
  const log = makeLog((line) => output.log(line), { json: flags.jsonLogs === true });
  if (flags.apiKey === "") throw new MoeError("usage", "--api-key: expected a key, got an empty one");
  const dtype = modelDtype(flags.dtype) ?? null;
  const tp = tensorParallel(flags, launcher?.size ?? flags.tp, launcher);
  if (flags.speculate !== undefined && flags.draftModel !== undefined)
    throw new MoeError("usage", "--speculate and --draft-model: expected one of them, got both");
  let settings: EngineSettings = {
    modelPath,
    dtype,
    cacheDtype: flags.kvDtype ?? null,
    activations: flags.activations,
    maxBatch: flags.maxBatch,
    maxContext: flags.maxContext ?? null,
    cacheBytes: flags.kvMemory === undefined ? null : flags.kvMemory * 2 ** 20,
    speculate: flags.speculate ?? null,
    draftModel: flags.draftModel ?? null,
    tp,
  };
  if (tp !== null) {
    // Decided here, so that what is printed is what is done.
    const { plan, cacheBytes } = planServing(settings, tp);
    for (const message of describePlan(plan)) log.write({ level: "info", message });
    settings = { ...settings, cacheBytes };
  }
  let end: (exitCode: number) => void = () => undefined;
  const ended = new Promise<number>((done) => {
    end = done;
  });
  const server = await startServer({
    ...settings,
    modelName: flags.name ?? basename(resolve(modelPath)),
    host: flags.host,
    port: flags.port,
    apiKey: flags.apiKey ?? null,
    version: version(),
    log,
    limits: {
      maxBatch: settings.maxBatch,
      maxQueue: flags.maxQueue,
      timeoutMs: flags.timeout * 1000,
      drainMs: flags.drainTimeout * 1000,
    },
    onDeath: (_message, exitCode) => {
      end(exitCode === 0 ? 1 : exitCode);
    },
  });
  const { info } = server.engine;
  // Before anybody is told that it serves.
  const onSignal = (signal: string): void => {
    // Where a rank's process died, mpirun ends the others: by this signal first.
    server.engine.checkRanks();
    if (server.engine.death === null) log.write({ level: "info", message: `${signal}: finishing what is under way` });
    end(0);
  };
  for (const signal of stopSignals) process.once(signal, onSignal);
  log.write({
    level: "info",
    message: `serving at ${server.url}`,
    parameters: formatCount(info.numParams),
    context: info.maxContext,
    cache: formatBytes(info.cacheBytes),
    engine: info.engine,
  });
  for (const [rank, { plannedBytes, heldBytes }] of info.ranks.entries()) {
    const message = `rank ${rank} holds ${gigabytes(heldBytes)} GB of weights and cache, planned ${gigabytes(plannedBytes)} GB`;
    log.write({ level: "info", message });
  }
  const exitCode = await ended;
  await server.close();
  for (const signal of stopSignals) process.off(signal, onSignal);
  if (exitCode !== 0) throw new MoeError("internal", `the engine is gone: ${server.engine.death ?? "no reason known"}`);
}
