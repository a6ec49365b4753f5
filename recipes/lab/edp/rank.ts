/** Entry of a rank: runs the lab's runs one after another, each on as many ranks as its layout has. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { numRanks } from "../../../src/config/layout.ts";
import { layoutOf } from "../../../src/config/run.ts";
import { Dataset, TokenFile } from "../../../src/data/index.ts";
import { Decoder } from "../../../src/model/index.ts";
import { runRank, trafficSince, copyTraffic, type Communicator, type TrafficTable } from "../../../src/parallel/index.ts";
import type { Engine } from "../../../src/tensor/index.ts";
import { MeshRanks } from "../../../src/train/parallel/mesh-ranks.ts";
import { RecordedCommunicator, Recorder } from "../../../src/parallel/recorder.ts";
import { chromeTrace } from "../../../src/util/chrome-trace.ts";
import { Trainer } from "../../../src/train/trainer.ts";
import { runOf, sizes, type LabResult, type LabRun } from "./job.ts";

await runRank(({ engine, communicator, data }) => {
  const { folder, runs } = data as { folder: string; runs: readonly LabRun[] };
  return runs.map((run) => runOne(engine, communicator, folder, run));
});

function runOne(engine: Engine, communicator: Communicator, folder: string, run: LabRun): LabResult | null {
  const config = runOf(run);
  const { model, sequenceLength } = sizes[run.size];
  const layout = layoutOf(config);
  const recorder = new Recorder(communicator.rank);
  const world = new RecordedCommunicator(communicator, recorder).split(
    [Array.from({ length: numRanks(layout) }, (_, rank) => rank)],
    "world",
  );
  if (world === null) return null;
  using file = new TokenFile(join(folder, "lab.tokens"));
  const data = new Dataset(file, { sequenceLength, seed: 1 });
  using ranks = new MeshRanks({
    engine,
    world,
    config,
    layout,
    model,
    recorder,
    open: (layers, shard) => Decoder.initialize(engine, model, { dtype: "f32", seed: 1, layers, shard }),
  });
  const { axes } = ranks.place;
  axes.block.emulateLink(run.link);
  const [first] = ranks.models;
  if (first === undefined) return null;
  using trainer = new Trainer(config, first, data, { peakFlops: null, ranks });
  const seconds: number[] = [];
  const losses: number[] = [];
  let before = tablesOf(axes);
  for (let step = 0; step < run.numSteps; step++) {
    before = tablesOf(axes);
    world.barrier();
    recorder.isOn = run.traceFile !== undefined && step === run.numSteps - 1;
    const started = performance.now();
    losses.push(trainer.step().loss);
    world.barrier();
    seconds.push((performance.now() - started) / 1000);
  }
  const after = tablesOf(axes);
  recorder.isOn = false;
  const spans = ranks.gather(recorder.take()).flat();
  if (run.traceFile !== undefined && world.rank === 0) {
    const start = Math.min(...spans.map(({ startUs }) => startUs));
    writeFileSync(
      run.traceFile,
      `${chromeTrace(
        spans.map((span) => ({ ...span, startUs: span.startUs - start })),
        { run: run.name },
      )}\n`,
    );
  }
  const own = Object.keys(after).map((axis) => {
    const tables = [after[axis], before[axis]] as const;
    const since = tables[0] === undefined || tables[1] === undefined ? [] : Object.values(trafficSince(tables[0], tables[1]));
    return { axis, bytes: since.reduce((sum, { bytes }) => sum + bytes, 0), seconds: since.reduce((sum, of) => sum + of.seconds, 0) };
  });
  const all = ranks.gather(own).flat();
  const perAxis = (of: (values: number[]) => number, key: "bytes" | "seconds"): Record<string, number> =>
    Object.fromEntries(own.map(({ axis }) => [axis, of(all.filter((one) => one.axis === axis).map((one) => one[key]))]));
  const sorted = seconds.slice(1).toSorted((a, b) => a - b);
  return {
    name: run.name,
    bytes: perAxis((values) => values.reduce((a, b) => a + b, 0), "bytes"),
    seconds: perAxis((values) => Math.max(...values), "seconds"),
    stepSeconds: sorted[Math.floor(sorted.length / 2)] ?? 0,
    losses,
  };
}

function tablesOf(axes: Readonly<Record<string, Communicator>>): Record<string, TrafficTable> {
  return Object.fromEntries(Object.entries(axes).flatMap(([axis, of]) => (of.size === 1 ? [] : [[axis, copyTraffic(of.traffic)]])));
}
