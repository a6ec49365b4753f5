/** Differentiable collectives, each as an operation from a rank's input to its output, with what the two are on the ranks. */
import { startExchange, TensorGroup } from "../../src/parallel/index.ts";
import type { Tensor } from "../../src/tensor/index.ts";

export const numTokens = 7;
const H = 3;

export interface Collective {
  readonly run: (x: Tensor, group: TensorGroup) => Tensor;
  /** Rows of the input on this rank; all have 3 columns. */
  readonly rows: (group: TensorGroup) => number;
  /** All ranks have the same input, and the whole gradient of it; otherwise each has its own. */
  readonly inputAlike: boolean;
  /** All ranks have the same output, and the same gradient of it comes back: it counts once. Otherwise each rank's counts. */
  readonly outputAlike: boolean;
}

const own = (group: TensorGroup): number => group.ownRows(numTokens).end - group.ownRows(numTokens).start;
/** Rows that a rank sends to each rank: some none. */
const sends = (rank: number, size: number): number[] => Array.from({ length: size }, (_, to) => (rank + 2 * to) % 3);

export const collectives: Readonly<Record<string, Collective>> = {
  spread: { run: (x, group) => group.spread(x), rows: () => numTokens, inputAlike: true, outputAlike: false },
  sum: { run: (x, group) => group.sum(copyOf(x), "f32"), rows: () => numTokens, inputAlike: false, outputAlike: true },
  "sum, scattered by rows": {
    run: (x, group) => sequenceParallel(group).leave(x, "f32"),
    rows: () => numTokens,
    inputAlike: false,
    outputAlike: false,
  },
  "gather of rows, for parts of a computation": {
    run: (x, group) => sequenceParallel(group).enter(x, numTokens),
    rows: own,
    inputAlike: false,
    outputAlike: false,
  },
  "gather of rows, for the same computation": {
    run: (x, group) => group.gatherRows(x, numTokens, "same"),
    rows: own,
    inputAlike: false,
    outputAlike: true,
  },
  "own rows": { run: (x, group) => group.takeOwnRows(x), rows: () => numTokens, inputAlike: true, outputAlike: false },
  "gather of columns": {
    run: (x, group) =>
      group.gatherColumns(
        x,
        Array.from({ length: group.size }, () => H),
      ),
    rows: () => numTokens,
    inputAlike: false,
    outputAlike: false,
  },
  "exchange of rows": {
    run: (x, { communicator }) => {
      const { rank, size } = communicator;
      const receive = Array.from({ length: size }, (_, from) => sends(from, size)[rank] ?? 0);
      return startExchange(communicator, x, { send: sends(rank, size), receive }).finish();
    },
    rows: ({ communicator: { rank, size } }) => sends(rank, size).reduce((a, b) => a + b, 0),
    inputAlike: false,
    outputAlike: false,
  },
};

function sequenceParallel({ engine, communicator }: TensorGroup): TensorGroup {
  return new TensorGroup(engine, communicator, { sequenceParallel: true });
}

/** A sum may overwrite its parts: the input of the test is not one. */
function copyOf(x: Tensor): Tensor {
  const { engine } = x;
  const out = engine.empty(x.shape, x.dtype);
  if (x.byteLength > 0) engine.backend.kernels.copyRows(out.ptr, x.ptr, 1, x.byteLength, x.byteLength, x.byteLength);
  const { tape } = engine;
  tape?.record([x], out, [], (dOut) => tape.addGrad(x, dOut));
  return out;
}
