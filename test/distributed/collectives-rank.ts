/** Entry of a rank: gradients of the collectives against finite differences over all ranks, and the loss over a cut vocabulary against the whole one. */
import { gatherValues } from "../../src/parallel/gather-values.ts";
import { runRank, TensorGroup, type Communicator } from "../../src/parallel/index.ts";
import { vocabularyCrossEntropy } from "../../src/parallel/vocabulary-loss.ts";
import { linearCrossEntropy, Tape, type Engine, type Tensor } from "../../src/tensor/index.ts";
import { equalSpeeds, partition } from "../../src/util/partition.ts";
import { Random } from "../../src/util/random.ts";
import { collectives, type Collective } from "./collectives.ts";

const H = 3;

await runRank(({ engine, communicator }) => {
  const before = engine.backend.liveBytes;
  const worst: Record<string, number> = {};
  for (const [name, collective] of Object.entries(collectives))
    worst[name] = engine.scope(() => worstGradient(engine, communicator, collective));
  worst["loss over a cut vocabulary"] = engine.scope(() => worstOfVocabulary(engine, communicator));
  return { worst, leaked: engine.backend.liveBytes - before };
});

function dot(a: Float32Array, b: Float32Array): number {
  return a.reduce((sum, value, i) => sum + value * (b[i] ?? NaN), 0);
}

/** Largest distance of a gradient from finite differences: of linear operations these are exact but for rounding. */
function worstGradient(engine: Engine, communicator: Communicator, { run, rows, inputAlike, outputAlike }: Collective): number {
  const group = new TensorGroup(engine, communicator);
  const { rank, size } = communicator;
  const numRows = rows(group);
  const values = Random.keyed(1, inputAlike ? 0 : rank).fillNormal(new Float32Array(numRows * H), 1);
  const input = (data: Float32Array): Tensor => engine.from(data, [numRows, H], "f32");
  const weights = (out: Tensor): Float32Array => Random.keyed(2, outputAlike ? 0 : rank).fillNormal(new Float32Array(out.size), 1);
  const x = input(values);
  x.requiresGrad = true;
  using tape = new Tape(engine);
  const out = engine.withTape(tape, () => run(x, group));
  tape.backward([{ value: out, grad: engine.from(weights(out), out.shape, "f32") }]);
  using grad = tape.takeGrad(x);
  const gradients = gatherValues(engine, communicator, grad?.toFloat32Array() ?? new Float32Array());
  const objective = (data: Float32Array): number => {
    const made = run(input(data), group);
    const parts = gatherValues(engine, communicator, dot(made.toFloat32Array(), weights(made)));
    return outputAlike ? (parts[0] ?? NaN) : parts.reduce((a, b) => a + b, 0);
  };
  let worst = 0;
  const sizes = gatherValues(engine, communicator, values.length);
  for (let moved = 0; moved < (inputAlike ? 1 : size); moved++) {
    for (let i = 0; i < (sizes[moved] ?? 0); i++) {
      const at = (offset: number): number => {
        const data = values.slice();
        if (inputAlike || moved === rank) data[i] = (data[i] ?? 0) + offset;
        return objective(data);
      };
      const slope = at(0.5) - at(-0.5);
      for (const [r, gradient] of gradients.entries())
        if (inputAlike || r === moved) worst = Math.max(worst, Math.abs(slope - (gradient[i] ?? NaN)));
    }
  }
  return worst;
}

/** Largest distance of loss and gradients, of tokens some of which bear no loss, from those of one rank with the whole vocabulary. */
function worstOfVocabulary(engine: Engine, communicator: Communicator): number {
  const [T, V, K, scale] = [9, 11, 4, 0.25];
  const vocab = partition(V, equalSpeeds(communicator.size))[communicator.rank] ?? { start: 0, end: 0 };
  const table = Random.keyed(3).fillNormal(new Float32Array(V * K), 1);
  const hidden = Random.keyed(4).fillNormal(new Float32Array(T * K), 2);
  const targets = engine.from([0, 10, -1, 5, 3, 3, -1, 7, 9], [T], "i32");
  const run = (
    make: (x: Tensor, w: Tensor) => { loss: Tensor; perToken: Tensor },
    rows: { start: number; end: number },
  ): Float32Array[] => {
    const x = engine.from(hidden, [T, K], "f32");
    const w = engine.from(table.subarray(rows.start * K, rows.end * K), [rows.end - rows.start, K], "f32");
    x.requiresGrad = w.requiresGrad = true;
    using tape = new Tape(engine);
    const { loss, perToken } = engine.withTape(tape, () => make(x, w));
    tape.backward([{ value: loss, grad: 1 }]);
    using dx = tape.takeGrad(x);
    using dw = tape.takeGrad(w);
    return [
      loss.toFloat32Array(),
      perToken.toFloat32Array(),
      dx?.toFloat32Array() ?? new Float32Array(),
      dw?.toFloat32Array() ?? new Float32Array(),
    ];
  };
  const whole = run((x, w) => linearCrossEntropy(x, w, targets, { scale }), { start: 0, end: V });
  const cut = run((x, w) => vocabularyCrossEntropy(communicator, x, w, targets, { scale, vocab, vocabSize: V }), vocab);
  // Parts of the gradient of x.
  const parts = gatherValues(engine, communicator, cut[2] ?? new Float32Array());
  const got = [cut[0], cut[1], parts[0]?.map((_, i) => parts.reduce((sum, part) => sum + (part[i] ?? NaN), 0)), cut[3]];
  const expected = [whole[0], whole[1], whole[2], whole[3]?.subarray(vocab.start * K, vocab.end * K)];
  return Math.max(...expected.flatMap((values, i) => [...(values ?? [NaN])].map((value, j) => Math.abs(value - (got[i]?.[j] ?? NaN)))));
}
