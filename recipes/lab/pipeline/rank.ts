/** Entry of a rank of the pipeline lab: a trainer for each variant of the layout, and steps of them on command. */
import { parentPort } from "node:worker_threads";
import type { LayoutInput } from "../../../src/config/layout.ts";
import { Dataset, TokenFile } from "../../../src/data/index.ts";
import { runRank } from "../../../src/parallel/index.ts";
import { RecordedCommunicator, Recorder } from "../../../src/parallel/recorder.ts";
import type { TraceSpan } from "../../../src/util/chrome-trace.ts";
import { openRanks } from "../../../src/train/open-ranks.ts";
import { Trainer } from "../../../src/train/index.ts";
import { labModel, labRun, sequenceLength } from "./model.ts";

export interface Variant {
  readonly layout: LayoutInput;
  readonly numMicroBatches: number;
}
export interface LabJob {
  readonly variants: readonly Variant[];
  readonly tokens: string;
}
export type LabCommand = { readonly type: "step"; readonly variant: number; readonly trace: boolean } | { readonly type: "end" };
export interface LabStep {
  /** From when all ranks began until all had ended. */
  readonly seconds: number;
  readonly loss: number;
  /** Most bytes of this rank's backend in the step. */
  readonly peakBytes: number;
  readonly spans: readonly TraceSpan[];
}

await runRank(async ({ engine, communicator, data, emit }) => {
  const { variants, tokens } = data as LabJob;
  const recorder = new Recorder(communicator.rank);
  const world = new RecordedCommunicator(communicator, recorder);
  const model = labModel();
  using file = new TokenFile(tokens);
  const dataset = new Dataset(file, { sequenceLength, seed: 1 });
  const opened = variants.map(({ layout, numMicroBatches }) => {
    const config = labRun(numMicroBatches, layout);
    const source = { config: model, path: null };
    return { config, parts: openRanks(engine, { world: world.size === 1 ? null : world, config, source, recorder }) };
  });
  const made = opened.map(({ config, parts: { ranks } }) => {
    const [first] = ranks.models;
    if (first === undefined) throw new Error("a rank without layers");
    return new Trainer(config, first, dataset, { peakFlops: null, ranks, recorder });
  });
  const commands: LabCommand[] = [];
  let wake: (() => void) | null = null;
  parentPort?.on("message", (command: LabCommand) => {
    commands.push(command);
    wake?.();
  });
  emit("ready");
  for (;;) {
    if (commands.length === 0) await new Promise<void>((resolve) => (wake = resolve));
    wake = null;
    const command = commands.shift();
    if (command === undefined) continue;
    if (command.type === "end") break;
    const trainer = made[command.variant];
    if (trainer === undefined) throw new Error(`no variant ${command.variant}`);
    engine.backend.resetPeak();
    world.barrier();
    recorder.isOn = command.trace;
    const started = performance.now();
    const { loss } = trainer.step();
    recorder.isOn = false;
    world.barrier();
    const step: LabStep = {
      seconds: (performance.now() - started) / 1000,
      loss,
      peakBytes: engine.backend.peakBytes,
      spans: recorder.take(),
    };
    emit(step);
  }
  for (const trainer of made) trainer[Symbol.dispose]();
  for (const { parts } of opened) parts[Symbol.dispose]();
  return engine.backend.liveBytes;
});
