/** Entry of a rank of rows `planner.runtime`: a trainer for each case of as many ranks as there are, and steps of them on command. */
import { parentPort } from "node:worker_threads";
import { Dataset, TokenFile } from "../src/data/index.ts";
import { runRank } from "../src/parallel/index.ts";
import { RecordedCommunicator, Recorder } from "../src/parallel/recorder.ts";
import { openRanks } from "../src/train/open-ranks.ts";
import { Trainer } from "../src/train/index.ts";
import type { TraceSpan } from "../src/util/chrome-trace.ts";
import { modelOf, numRanksOf, runOf, type RuntimeCase } from "./planner-runtime-cases.ts";

export interface RuntimeJob {
  readonly cases: readonly RuntimeCase[];
  /** A token file. */
  readonly tokens: string;
}
/** `index` of the job's cases; below 0: the end. */
export type RuntimeCommand = { readonly index: number };
export interface RuntimeReply {
  /** From when all ranks began until all had ended. */
  readonly seconds: number;
  readonly spans: readonly TraceSpan[];
}

await runRank(async ({ engine, communicator, data, emit }) => {
  const { cases, tokens } = data as RuntimeJob;
  const recorder = new Recorder(communicator.rank);
  const world = communicator.size === 1 ? null : new RecordedCommunicator(communicator, recorder);
  using file = new TokenFile(tokens);
  const opened = cases.map((one) => {
    if (numRanksOf(one) !== communicator.size) return null;
    const config = runOf(one);
    const parts = openRanks(engine, { world, config, source: { config: modelOf(one), path: null }, recorder });
    const [first] = parts.ranks.models;
    if (first === undefined) throw new Error(`${one.name}: a rank without layers`);
    const dataset = new Dataset(file, { sequenceLength: one.sequenceLength, seed: 1 });
    return { parts, trainer: new Trainer(config, first, dataset, { peakFlops: null, ranks: parts.ranks, recorder }) };
  });
  const commands: RuntimeCommand[] = [];
  let wake: (() => void) | null = null;
  parentPort?.on("message", (command: RuntimeCommand) => {
    commands.push(command);
    wake?.();
  });
  emit("ready");
  for (;;) {
    if (commands.length === 0) await new Promise<void>((resolve) => (wake = resolve));
    wake = null;
    const command = commands.shift();
    if (command === undefined) continue;
    if (command.index < 0) break;
    const chosen = opened[command.index];
    if (chosen === undefined || chosen === null) throw new Error(`no case ${command.index} of ${communicator.size} ranks`);
    const { trainer, parts } = chosen;
    communicator.barrier();
    recorder.isOn = true;
    const started = performance.now();
    trainer.step();
    // What ZeRO gathers is waited for by the next step, which here belongs to another case.
    parts.ranks.settle();
    recorder.isOn = false;
    communicator.barrier();
    const reply: RuntimeReply = { seconds: (performance.now() - started) / 1000, spans: recorder.take() };
    emit(reply);
  }
  for (const one of opened) {
    one?.trainer[Symbol.dispose]();
    one?.parts[Symbol.dispose]();
  }
});
