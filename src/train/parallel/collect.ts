/**
 * Whole tensors from the parts of many ranks, for rank 0, which writes checkpoints. The others say what they have and then answer: rank 0 asks
 * for a chunk of a part when it comes to it, so no rank holds more than one whole tensor and one chunk in flight, whatever the model's size.
 *
 * Where several ranks hold an element (data-parallel replicas, key-value heads, a tied embedding), the lowest rank's is taken: they are the
 * same. An element that nobody holds is an error before anything is written.
 */
import { dtypeBytes } from "../../backend/kernels.ts";
import type { WholeTensor } from "../../model/index.ts";
import type { Communicator } from "../../parallel/communicator.ts";
import type { Engine, Shape } from "../../tensor/index.ts";
import { boxRuns, boxSize, coverAll, type Box } from "../../util/box.ts";
import { MoeError } from "../../util/errors.ts";
import type { Interval } from "../../util/partition.ts";
import type { TensorPart } from "./parts.ts";

/** A part as its rank describes it. */
interface Described extends Omit<TensorPart, "tensor"> {
  readonly dtype: "f32" | "bf16";
  readonly rank: number;
  /** Place among the rank's parts. */
  readonly index: number;
}

const chunkBytes = 4 << 20;
/** Tags of a communicator that nothing else uses while a checkpoint is written. */
const tag = { length: 9001, description: 9002, request: 9003, answer: 9004 } as const;

/**
 * On rank 0, calls `write` with the tensors of the whole model by name, while the other ranks answer. Returns what it returned, null on the others.
 * All ranks call it alike. Throws `communication` where another rank is lost, `internal` where parts are missing.
 */
export function collectParts<T>(
  engine: Engine,
  communicator: Communicator,
  parts: readonly TensorPart[],
  write: (tensors: ReadonlyMap<string, WholeTensor>) => T,
): T | null {
  const own = parts.map(({ name, shape, box, elements, tensor: { dtype } }) => ({ name, shape, box, elements, dtype }));
  if (communicator.rank !== 0) {
    sendJson(engine, communicator, own);
    answer(engine, communicator, parts);
    return null;
  }
  const described = Array.from({ length: communicator.size }, (_, rank) =>
    (rank === 0 ? own : receiveJson(engine, communicator, rank)).map((part, index) => ({ ...part, rank, index }) as Described),
  ).flat();
  const asker = new Asker(engine, communicator, parts);
  try {
    return write(wholeTensors(described, asker));
  } finally {
    for (let rank = 1; rank < communicator.size; rank++) asker.dismiss(rank);
  }
}

/** Numbers of a request: part, first byte, number of bytes. A part of -1 is the last. */
const requestWords = 3;

/** Gives rank 0 what it asks for. */
function answer(engine: Engine, communicator: Communicator, parts: readonly TensorPart[]): void {
  using memory = engine.detached([requestWords], "i32");
  const [scale, request] = [1 << 20, new Int32Array(requestWords)];
  for (;;) {
    communicator.recv(memory.ptr, memory.byteLength, 0, tag.request);
    engine.backend.read(request, memory.ptr);
    const [index = -1, chunk = 0, length = 0] = request;
    const tensor = parts[index]?.tensor;
    if (tensor === undefined) return;
    communicator.send(tensor.ptr + chunk * scale, length, 0, tag.answer);
  }
}

/** Rank 0's side. */
class Asker {
  readonly #engine: Engine;
  readonly #communicator: Communicator;
  readonly #own: readonly TensorPart[];

  constructor(engine: Engine, communicator: Communicator, own: readonly TensorPart[]) {
    this.#engine = engine;
    this.#communicator = communicator;
    this.#own = own;
  }

  /** All bytes of a part. */
  read({ rank, index, elements, dtype, name }: Described): Uint8Array {
    const bytes = new Uint8Array((elements.end - elements.start) * dtypeBytes[dtype]);
    const { backend } = this.#engine;
    if (rank === this.#communicator.rank) {
      const tensor = this.#own[index]?.tensor;
      if (tensor === undefined) throw new MoeError("internal", `collect: no part ${index} of ${name}`);
      backend.read(bytes, tensor.ptr);
      return bytes;
    }
    using memory = this.#engine.detached([chunkBytes / 4], "f32");
    for (let at = 0; at < bytes.length; at += chunkBytes) {
      const length = Math.min(chunkBytes, bytes.length - at);
      this.#ask(rank, [index, at >> 20, length]);
      this.#communicator.recv(memory.ptr, length, rank, tag.answer);
      backend.read(bytes.subarray(at, at + length), memory.ptr);
    }
    return bytes;
  }
  dismiss(rank: number): void {
    this.#ask(rank, [-1, 0, 0]);
  }
  #ask(rank: number, request: readonly number[]): void {
    using memory = this.#engine.detached([requestWords], "i32");
    this.#engine.backend.write(memory.ptr, Int32Array.from(request));
    this.#communicator.send(memory.ptr, memory.byteLength, rank, tag.request);
  }
}

function wholeTensors(described: readonly Described[], asker: Asker): Map<string, WholeTensor> {
  const byName = new Map<string, Described[]>();
  for (const part of described) {
    const parts = byName.get(part.name);
    if (parts === undefined) byName.set(part.name, [part]);
    else parts.push(part);
  }
  // The last one put together: writers take all of a tensor before the next.
  let last: { readonly name: string; readonly bytes: Uint8Array } | null = null;
  return new Map(
    Array.from(byName, ([name, parts]) => {
      const [{ dtype, shape } = { dtype: "f32" as const, shape: [] }] = parts;
      const chosen = chooseParts(name, parts);
      const read = (into: Uint8Array, fromByte: number): void => {
        if (last?.name !== name) last = { name, bytes: assemble(shape, dtype, chosen, asker) };
        into.set(last.bytes.subarray(fromByte, fromByte + into.length));
      };
      return [name, { dtype, shape, read }];
    }),
  );
}

/** Parts, from the lowest ranks, that have every element between them. */
function chooseParts(name: string, parts: readonly Described[]): Described[] {
  const [first] = parts;
  const odd = parts.find(({ shape, dtype }) => shape.join() !== first?.shape.join() || dtype !== first.dtype);
  if (first === undefined || odd !== undefined)
    throw new MoeError(
      "internal",
      `collect: ranks disagree on ${name}: [${first?.shape.join(", ")}] ${first?.dtype} and [${odd?.shape.join(", ")}] ${odd?.dtype}`,
    );
  const boxes = new Map<string, { box: Box; parts: Described[] }>();
  for (const part of parts) {
    const key = JSON.stringify(part.box);
    const entry = boxes.get(key) ?? { box: part.box, parts: [] };
    boxes.set(key, entry);
    if (!entry.parts.some(({ elements }) => contains(elements, part.elements))) entry.parts.push(part);
  }
  for (const { box, parts: held } of boxes.values()) {
    let end = 0;
    for (const { elements } of held.toSorted((a, b) => a.elements.start - b.elements.start))
      if (elements.start <= end) end = Math.max(end, elements.end);
    if (end < boxSize(box)) throw new MoeError("internal", `collect: nobody has element ${end} of a part of ${name}`);
  }
  const whole = [...boxes.values()];
  if (
    !coverAll(
      first.shape,
      whole.map(({ box }) => box),
    )
  )
    throw new MoeError("internal", `collect: ranks have parts of ${name}, but not all of it`);
  // A box that others cover already is not asked for.
  const needed = whole.filter(
    ({ box }, i) =>
      !whole.some((other, j) => j < i && box.every((interval, dim) => contains(other.box[dim] ?? { start: 0, end: 0 }, interval))),
  );
  return needed.flatMap((entry) => entry.parts);
}
function contains(outer: Interval, inner: Interval): boolean {
  return outer.start <= inner.start && outer.end >= inner.end;
}

function assemble(shape: Shape, dtype: "f32" | "bf16", parts: readonly Described[], asker: Asker): Uint8Array {
  const bytes = dtypeBytes[dtype];
  const whole = new Uint8Array(shape.reduce((a, b) => a * b, bytes));
  for (const part of parts) {
    const own = asker.read(part);
    for (const run of boxRuns(shape, part.box, part.elements))
      whole.set(own.subarray(run.part * bytes, (run.part + run.length) * bytes), run.whole * bytes);
  }
  return whole;
}

function sendJson(engine: Engine, communicator: Communicator, value: unknown): void {
  const bytes = new TextEncoder().encode(JSON.stringify(value));
  using length = engine.detached([1], "i32");
  using memory = engine.detached([Math.ceil(bytes.length / 4)], "f32");
  engine.backend.write(length.ptr, Int32Array.of(bytes.length));
  engine.backend.write(memory.ptr, bytes);
  communicator.send(length.ptr, 4, 0, tag.length);
  communicator.send(memory.ptr, bytes.length, 0, tag.description);
}
function receiveJson(engine: Engine, communicator: Communicator, rank: number): Omit<Described, "rank" | "index">[] {
  using length = engine.detached([1], "i32");
  communicator.recv(length.ptr, 4, rank, tag.length);
  const bytes = new Uint8Array(length.item());
  using memory = engine.detached([Math.ceil(bytes.length / 4)], "f32");
  communicator.recv(memory.ptr, bytes.length, rank, tag.description);
  engine.backend.read(bytes, memory.ptr);
  // It comes from this program.
  return JSON.parse(new TextDecoder().decode(bytes)) as Omit<Described, "rank" | "index">[];
}
