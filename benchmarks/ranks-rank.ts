/** A rank of rows `ranks.*`, `ddp` and `zero.memory`: makes its part of the model, then takes steps when rank 0 is told to. */
import { parentPort } from "node:worker_threads";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { layoutOf, parseRunConfig } from "../src/config/run.ts";
import { fromHuggingFaceConfig } from "../src/config/model-huggingface.ts";
import { Dataset, TokenFile, TokenFileWriter } from "../src/data/index.ts";
import { Decoder } from "../src/model/index.ts";
import { runRank } from "../src/parallel/index.ts";
import { MeshRanks } from "../src/train/parallel/mesh-ranks.ts";
import { Trainer } from "../src/train/trainer.ts";
import { Random } from "../src/util/random.ts";
import type { RanksJob, RanksReply } from "./ranks.ts";

await runRank(async ({ engine, communicator, data, emit }) => {
  const { shape, layout: layoutInput, precision, microBatchSequences, forcedBalance = false } = data as RanksJob;
  const folder = mkdtempSync(join(tmpdir(), "moe-bench-ranks-"));
  const path = join(folder, "tokens");
  const random = new Random(1);
  const { vocab_size: vocabSize } = shape.config;
  using writer = new TokenFileWriter(path, { vocabSize });
  writer.append(Int32Array.from({ length: 8 * shape.batch * shape.sequence + 1 }, () => random.integer(vocabSize)));
  writer.finish("random");
  using tokens = new TokenFile(path);
  const config = parseRunConfig({
    model: { config: {} },
    data: { train: [{ path }], sequenceLength: shape.sequence },
    batchSequences: shape.batch,
    microBatchSequences,
    numSteps: 100_000,
    precision,
    optimizer: { learningRate: 1e-4, clipNorm: 1 },
    layout: layoutInput,
    ...(forcedBalance ? { moe: { forcedBalance } } : {}),
  });
  const layout = layoutOf(config);
  const model = fromHuggingFaceConfig(shape.config);
  const before = engine.backend.liveBytes;
  using ranks = new MeshRanks({
    engine,
    world: communicator,
    config,
    layout,
    model,
    open: (layers, shard) => Decoder.initialize(engine, model, { dtype: precision, seed: 1, layers, shard }),
  });
  const [first] = ranks.models;
  if (first === undefined) throw new Error("a rank without a model");
  using trainer = new Trainer(config, first, new Dataset(tokens, { sequenceLength: shape.sequence, seed: 1 }), { peakFlops: null, ranks });
  const say = (text: string | null): string =>
    new TextDecoder().decode(communicator.share(text === null ? null : new TextEncoder().encode(text), 0));
  for (;;) {
    const asked = communicator.rank === 0 ? await new Promise<string>((resolve) => parentPort?.once("message", resolve)) : null;
    if (say(asked) === "end") break;
    communicator.barrier();
    const started = performance.now();
    trainer.step();
    ranks.settle();
    communicator.barrier();
    const reply: RanksReply = { seconds: (performance.now() - started) / 1000, bytes: engine.backend.liveBytes - before };
    if (communicator.rank === 0) emit(reply);
  }
  rmSync(folder, { recursive: true });
});
