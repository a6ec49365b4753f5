/**
 * Runs a rank's part of a pipeline schedule (`src/util/pipeline-schedule.ts`): takes hidden states from the stage before and gives them to the one after,
 * and their gradients the other way. What a stage computes is not known here.
 *
 * Messages between two stages have a tag of their own in each direction, and every stage takes micro-batches in ascending order both ways, so the oldest
 * message of a tag is the right one, whatever the schedule does between. Sends are buffered and never wait; what the next operation needs
 * is asked for before the present one computes, so that it can arrive meanwhile. Nothing is kept here: an activation is disposed when it was sent, a gradient when it was used.
 *
 * Two stages of one rank that follow each other (a pipeline of one rank) hand over in memory.
 */
import type { DType } from "../backend/kernels.ts";
import type { Engine, Shape, Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { rankOfStage, type PipelineOperation, type PipelineOperationKind } from "../util/pipeline-schedule.ts";
import type { Communicator, Pending } from "./communicator.ts";

/** A stage as the executor sees it. Tensors that it returns belong to no scope: the executor disposes them. */
export interface PipelineStage {
  /** Hidden states of the stage after (null: this is the last), from those of the stage before (null: this is the first), which stay the executor's. */
  forward(microBatch: number, hidden: Tensor | null): Tensor | null;
  /** Gradient of the hidden states that came in, from that of those that went out. */
  backward(microBatch: number, hiddenGrad: Tensor | null): Tensor | null;
}

/** What goes between stages for one micro-batch: the same at every border. */
export interface HiddenForm {
  readonly shape: Shape;
  readonly dtype: DType;
}

export interface PipelineEvent {
  readonly kind: PipelineOperationKind | "send" | "recv";
  /** Of a message: the stage that takes it. */
  readonly stage: number;
  readonly microBatch: number;
  readonly direction: "forward" | "backward";
}

export interface PipelineRun {
  readonly engine: Engine;
  /** Of the pipeline's ranks: rank r has the stages s with s mod size = r. */
  readonly communicator: Communicator;
  readonly numStages: number;
  /** This rank's, in order. */
  readonly operations: readonly PipelineOperation[];
  /** This rank's stages by number. */
  readonly stages: ReadonlyMap<number, PipelineStage>;
  readonly hidden: (microBatch: number) => HiddenForm;
  /** Runs `run`, which is what `event` says: for a trace. */
  readonly observe?: <T>(event: PipelineEvent, run: () => T) => T;
}

/** Runs the operations. All ranks of the communicator do. Throws `communication`, and `unsupported` for a backward pass in halves. */
export function runPipeline(run: PipelineRun): void {
  using exchange = new Exchange(run);
  const { observe = (_, fn) => fn() } = run;
  for (const [index, operation] of run.operations.entries()) {
    const { kind, stage, microBatch } = operation;
    const own = run.stages.get(stage);
    if (own === undefined) throw new MoeError("internal", `pipeline: stage ${stage} is not on rank ${run.communicator.rank}`);
    const direction = directionOf(kind);
    using input = exchange.take(operation);
    const next = run.operations[index + 1];
    if (next !== undefined) exchange.expect(next);
    const compute = (): Tensor | null => (direction === "forward" ? own.forward(microBatch, input) : own.backward(microBatch, input));
    using output = observe({ kind, stage, microBatch, direction }, compute);
    exchange.give(operation, output);
  }
}

function directionOf(kind: PipelineOperationKind): "forward" | "backward" {
  if (kind === "forward" || kind === "backward") return kind;
  throw new MoeError(
    "unsupported",
    `pipeline: ${kind}: schedules that split the backward pass are simulated, not run; use "1f1b" or "interleaved"`,
  );
}

interface Arriving {
  readonly tensor: Tensor;
  readonly pending: Pending;
}

/** Messages between this rank's stages and their neighbours. */
class Exchange implements Disposable {
  readonly #run: PipelineRun;
  readonly #arriving = new Map<PipelineOperation, Arriving>();
  /** By tag: what a stage of this rank gave to another one of it. */
  readonly #local = new Map<number, Tensor[]>();

  constructor(run: PipelineRun) {
    this.#run = run;
  }

  /** The stage that gives an operation its input, or null at the ends of the model. */
  #giver({ kind, stage }: PipelineOperation): number | null {
    const giver = directionOf(kind) === "forward" ? stage - 1 : stage + 1;
    return giver < 0 || giver >= this.#run.numStages ? null : giver;
  }

  /** Asks for the input of an operation that comes next. */
  expect(operation: PipelineOperation): void {
    const giver = this.#giver(operation);
    const { communicator, engine, hidden } = this.#run;
    if (giver === null || rankOfStage(giver, communicator.size) === communicator.rank || this.#arriving.has(operation)) return;
    const { shape, dtype } = hidden(operation.microBatch);
    const tensor = engine.detached(shape, dtype);
    const from = rankOfStage(giver, communicator.size);
    const pending = communicator.startRecv(tensor.ptr, tensor.byteLength, from, tagOf(operation.stage, directionOf(operation.kind)));
    this.#arriving.set(operation, { tensor, pending });
  }

  take(operation: PipelineOperation): Tensor | null {
    const { communicator, observe = (_, fn) => fn() } = this.#run;
    const giver = this.#giver(operation);
    if (giver === null) return null;
    const direction = directionOf(operation.kind);
    if (rankOfStage(giver, communicator.size) === communicator.rank) {
      const tensor = this.#local.get(tagOf(operation.stage, direction))?.shift();
      if (tensor === undefined)
        throw new MoeError("internal", `pipeline: stage ${operation.stage} runs before stage ${giver} gave it its input`);
      return tensor;
    }
    this.expect(operation);
    const arriving = this.#arriving.get(operation);
    if (arriving === undefined) throw new MoeError("internal", "pipeline: a message that nobody asked for");
    observe({ kind: "recv", stage: operation.stage, microBatch: operation.microBatch, direction }, () => arriving.pending.wait());
    this.#arriving.delete(operation);
    return arriving.tensor;
  }

  /** To the stage after, of a forward pass; before, of a backward pass. */
  give({ kind, stage, microBatch }: PipelineOperation, output: Tensor | null): void {
    const { communicator, numStages, hidden, observe = (_, fn) => fn() } = this.#run;
    const direction = directionOf(kind);
    const to = direction === "forward" ? stage + 1 : stage - 1;
    const isEnd = to < 0 || to >= numStages;
    if (isEnd !== (output === null))
      throw new MoeError(
        "internal",
        `pipeline: stage ${stage} of ${numStages} gave ${output === null ? "nothing" : "something"} for stage ${to}`,
      );
    if (output === null) return;
    const { shape, dtype } = hidden(microBatch);
    if (output.shape.join() !== shape.join() || output.dtype !== dtype)
      throw new MoeError(
        "shape",
        `pipeline: stage ${stage} gave [${output.shape.join(", ")}] ${output.dtype}, expected [${shape.join(", ")}] ${dtype}`,
      );
    const tag = tagOf(to, direction);
    if (rankOfStage(to, communicator.size) === communicator.rank) {
      const waiting = this.#local.get(tag) ?? [];
      this.#local.set(tag, waiting);
      waiting.push(output.retain());
      return;
    }
    const receiver = rankOfStage(to, communicator.size);
    observe({ kind: "send", stage: to, microBatch, direction }, () => communicator.send(output.ptr, output.byteLength, receiver, tag));
  }

  /** What an error left. */
  [Symbol.dispose](): void {
    for (const { tensor } of this.#arriving.values()) tensor.dispose();
    for (const tensors of this.#local.values()) for (const tensor of tensors) tensor.dispose();
  }
}

/** Tag of messages to a stage. */
function tagOf(stage: number, direction: "forward" | "backward"): number {
  return 2 * stage + (direction === "forward" ? 0 : 1);
}
