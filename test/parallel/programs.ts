/**
 * What ranks do in the communicators' conformance suite, as data: a program is a list of operations, which every rank runs, and whose
 * results a plain reference computes from the inputs of all ranks. The same programs run over threads and over MPI.
 */
import type { Backend } from "../../src/backend/backend.ts";
import type { Communicator, Pending, SumDType } from "../../src/parallel/index.ts";
import { MoeError } from "../../src/util/errors.ts";
import { Random } from "../../src/util/random.ts";

/** Operations that have a non-blocking form. */
export type Startable =
  | { readonly type: "sum"; readonly dtype: SumDType; readonly count: number }
  | { readonly type: "scatter"; readonly dtype: SumDType; readonly counts: readonly number[]; readonly inPlace: boolean }
  | { readonly type: "gather"; readonly lengths: readonly number[]; readonly inPlace: boolean }
  /** lengths[from][to]. */
  | { readonly type: "exchange"; readonly lengths: readonly (readonly number[])[] }
  | { readonly type: "message"; readonly from: number; readonly to: number; readonly length: number; readonly tag: number };
export type Operation =
  | Startable
  | { readonly type: "broadcast"; readonly length: number; readonly root: number }
  | { readonly type: "share"; readonly length: number; readonly root: number }
  | { readonly type: "barriers"; readonly count: number }
  /** All started, then waited for in an order that differs from rank to rank. */
  | { readonly type: "overlapped"; readonly operations: readonly Startable[] }
  /** Each group runs its program on a communicator of its own. */
  | { readonly type: "split"; readonly groups: readonly (readonly number[])[]; readonly programs: readonly (readonly Operation[])[] };
export type Program = readonly Operation[];

/** Where an operation stands: keys its inputs. */
type Path = readonly number[];

function bytesOfDtype(dtype: SumDType): number {
  return dtype === "f32" ? 4 : 2;
}
function total(lengths: readonly number[]): number {
  return lengths.reduce((a, b) => a + b, 0);
}

/** What world rank `rank` puts in: finite f32 or bf16 of very different sizes, or bytes. */
function inputOf(operation: Operation, path: Path, rank: number, place: number): Uint8Array<ArrayBuffer> {
  const random = Random.keyed(9, rank, path.reduce((key, at) => key * 131 + at + 1, 7) % 2 ** 31);
  const bytes = (length: number): Uint8Array<ArrayBuffer> => Uint8Array.from({ length }, () => random.uint32());
  switch (operation.type) {
    case "sum":
    case "scatter": {
      const count = operation.type === "sum" ? operation.count : total(operation.counts);
      const values = random.fillNormal(new Float32Array(count + (count % 2)), 10).slice(0, count);
      for (let i = 0; i < count; i += 7) values[i] = (values[i] ?? 0) * 2 ** ((i % 40) - 20);
      if (operation.dtype === "f32") return new Uint8Array(values.buffer);
      // The upper half of an f32 is a bf16.
      return new Uint8Array(Uint16Array.from(new Uint32Array(values.buffer), (bits) => bits >>> 16).buffer);
    }
    case "gather":
      return bytes(operation.lengths[place] ?? 0);
    case "exchange":
      return bytes(total(operation.lengths[place] ?? []));
    case "message":
      return bytes(place === operation.from ? operation.length : 0);
    case "broadcast":
    case "share":
      return bytes(operation.length);
    case "barriers":
    case "overlapped":
    case "split":
      return new Uint8Array(0);
    default:
      return operation satisfies never;
  }
}

// ---- the reference

function floats(bytes: Uint8Array<ArrayBuffer>, dtype: SumDType): Float32Array {
  if (dtype === "f32") return new Float32Array(bytes.buffer);
  return new Float32Array(Uint32Array.from(new Uint16Array(bytes.buffer), (half) => half << 16).buffer);
}
/** Sums in rank order, each step rounded to f32, and to bf16 at the end. */
function summed(inputs: readonly Uint8Array<ArrayBuffer>[], dtype: SumDType): Uint8Array {
  const [first, ...others] = inputs.map((bytes) => floats(bytes, dtype));
  if (inputs.length === 1) return inputs[0] ?? new Uint8Array(0);
  const sum = Float32Array.from(first ?? [], (value, i) => others.reduce((all, part) => Math.fround(all + (part[i] ?? 0)), value));
  if (dtype === "f32") return new Uint8Array(sum.buffer);
  return new Uint8Array(Uint16Array.from(new Uint32Array(sum.buffer), (bits) => (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16).buffer);
}

/** What each member of a group (world ranks) must have in the end, operation by operation. */
export function expectedResults(program: Program, members: readonly number[], path: Path = []): Uint8Array[][] {
  const byOperation = program.map((operation, at) => expectedOf(operation, members, [...path, at]));
  return members.map((_, place) => byOperation.flatMap((results) => results[place] ?? []));
}
function expectedOf(operation: Operation, members: readonly number[], path: Path): Uint8Array[][] {
  const inputs = members.map((rank, place) => inputOf(operation, path, rank, place));
  switch (operation.type) {
    case "sum": {
      const sum = summed(inputs, operation.dtype);
      return members.map(() => [sum]);
    }
    case "scatter": {
      const sum = summed(inputs, operation.dtype);
      const element = bytesOfDtype(operation.dtype);
      return members.map((_, place) => {
        const start = total(operation.counts.slice(0, place)) * element;
        return [sum.slice(start, start + (operation.counts[place] ?? 0) * element)];
      });
    }
    case "gather":
      return members.map(() => [Uint8Array.from(Buffer.concat(inputs))]);
    case "exchange":
      return members.map((_, to) => [
        Uint8Array.from(
          Buffer.concat(
            inputs.map((input, from) => {
              const start = total(operation.lengths[from]?.slice(0, to) ?? []);
              return input.subarray(start, start + (operation.lengths[from]?.[to] ?? 0));
            }),
          ),
        ),
      ]);
    case "message":
      return members.map((_, place) => [place === operation.to ? (inputs[operation.from] ?? new Uint8Array(0)) : new Uint8Array(0)]);
    case "broadcast":
    case "share":
      return members.map(() => [inputs[operation.root] ?? new Uint8Array(0)]);
    case "barriers":
      return members.map(() => [new Uint8Array(0)]);
    case "overlapped":
      return expectedResults(operation.operations, members, path);
    case "split": {
      const results = members.map((): Uint8Array[] => []);
      for (const [index, group] of operation.groups.entries()) {
        const ranks = group.map((place) => members[place] ?? 0);
        const found = expectedResults(operation.programs[index] ?? [], ranks, [...path, index]);
        for (const [at, place] of group.entries()) results[place] = found[at] ?? [];
      }
      return results;
    }
    default:
      return operation satisfies never;
  }
}

// ---- a rank

/** Runs a program on this rank. Leaves nothing allocated. */
export function runProgram(backend: Backend, communicator: Communicator, program: Program, path: Path = []): Uint8Array[] {
  return program.flatMap((operation, at) => runOperation(backend, communicator, operation, [...path, at]));
}

function runOperation(backend: Backend, communicator: Communicator, operation: Operation, path: Path): Uint8Array[] {
  const world = communicator.members[communicator.rank] ?? 0;
  switch (operation.type) {
    case "broadcast": {
      const input = inputOf(operation, path, world, communicator.rank);
      const ptr = backend.alloc(input.length);
      if (communicator.rank === operation.root) backend.write(ptr, input);
      communicator.broadcast(ptr, input.length, operation.root);
      return [taken(backend, ptr, input.length)];
    }
    case "share": {
      const input = inputOf(operation, path, world, communicator.rank);
      return [communicator.share(communicator.rank === operation.root ? input : null, operation.root)];
    }
    case "barriers":
      for (let i = 0; i < operation.count; i++) communicator.barrier();
      return [new Uint8Array(0)];
    case "overlapped": {
      const started = operation.operations.map((one, at) => start(backend, communicator, one, [...path, at], true));
      const { length } = started;
      for (let i = 0; i < length; i++) {
        const { pending } = started[(length + i * (communicator.rank % 2 === 0 ? 1 : -1) + communicator.rank) % length] ?? {};
        // Looking is allowed, and brings things forward.
        if (i % 2 === 0) pending?.done();
        pending?.wait();
      }
      return started.map(({ result }) => result());
    }
    case "split": {
      const group = communicator.split(operation.groups, "part");
      const index = operation.groups.findIndex((members) => members.includes(communicator.rank));
      return group === null ? [] : runProgram(backend, group, operation.programs[index] ?? [], [...path, index]);
    }
    default: {
      const { pending, result } = start(backend, communicator, operation, path, false);
      pending?.wait();
      return [result()];
    }
  }
}

function taken(backend: Backend, ptr: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  backend.read(bytes, ptr);
  backend.free(ptr);
  return bytes;
}

interface Started {
  /** Null where this rank has no part, or the blocking form was used. */
  readonly pending: Pending | null;
  readonly result: () => Uint8Array;
}

function start(backend: Backend, communicator: Communicator, operation: Startable, path: Path, overlapped: boolean): Started {
  const { rank } = communicator;
  const input = inputOf(operation, path, communicator.members[rank] ?? 0, rank);
  const at = (length: number): number => backend.alloc(length);
  const filled = (): number => {
    const ptr = at(input.length);
    backend.write(ptr, input);
    return ptr;
  };
  switch (operation.type) {
    case "sum": {
      const ptr = filled();
      const pending = overlapped ? communicator.startAllReduce(ptr, operation.count, operation.dtype) : null;
      if (!overlapped) communicator.allReduce(ptr, operation.count, operation.dtype);
      return { pending, result: () => taken(backend, ptr, input.length) };
    }
    case "scatter":
      return scatter(backend, communicator, operation, filled(), overlapped);
    case "gather":
      return gather(backend, communicator, operation, input, overlapped);
    case "exchange": {
      const ptr = filled();
      const receives = operation.lengths.map((row) => row[rank] ?? 0);
      const sends = operation.lengths[rank] ?? [];
      const out = at(total(receives));
      const pending = overlapped ? communicator.startAllToAll(out, receives, ptr, sends) : null;
      if (!overlapped) communicator.allToAll(out, receives, ptr, sends);
      const result = (): Uint8Array => {
        backend.free(ptr);
        return taken(backend, out, total(receives));
      };
      return { pending, result };
    }
    case "message":
      return message(backend, communicator, operation, input, overlapped);
    default:
      return operation satisfies never;
  }
}

function scatter(
  backend: Backend,
  communicator: Communicator,
  { dtype, counts, inPlace }: Startable & { type: "scatter" },
  ptr: number,
  overlapped: boolean,
): Started {
  const element = bytesOfDtype(dtype);
  const length = (counts[communicator.rank] ?? 0) * element;
  const own = ptr + total(counts.slice(0, communicator.rank)) * element;
  const out = inPlace ? own : backend.alloc(length);
  const pending = overlapped ? communicator.startReduceScatter(out, ptr, counts, dtype) : null;
  if (!overlapped) communicator.reduceScatter(out, ptr, counts, dtype);
  const result = (): Uint8Array => {
    const bytes = new Uint8Array(length);
    backend.read(bytes, out);
    backend.free(ptr);
    if (!inPlace) backend.free(out);
    return bytes;
  };
  return { pending, result };
}

function gather(
  backend: Backend,
  communicator: Communicator,
  { lengths, inPlace }: Startable & { type: "gather" },
  input: Uint8Array,
  overlapped: boolean,
): Started {
  const out = backend.alloc(total(lengths));
  const own = out + total(lengths.slice(0, communicator.rank));
  const ptr = inPlace ? own : backend.alloc(input.length);
  backend.write(ptr, input);
  const pending = overlapped ? communicator.startAllGather(out, ptr, lengths) : null;
  if (!overlapped) communicator.allGather(out, ptr, lengths);
  const result = (): Uint8Array => {
    if (!inPlace) backend.free(ptr);
    return taken(backend, out, total(lengths));
  };
  return { pending, result };
}

function message(
  backend: Backend,
  communicator: Communicator,
  { from, to, length, tag }: Startable & { type: "message" },
  input: Uint8Array,
  overlapped: boolean,
): Started {
  const { rank } = communicator;
  if (rank !== from && rank !== to) return { pending: null, result: () => new Uint8Array(0) };
  const ptr = backend.alloc(length);
  let pending: Pending | null = null;
  if (rank === from) {
    backend.write(ptr, input);
    if (overlapped) pending = communicator.startSend(ptr, length, to, tag);
    else communicator.send(ptr, length, to, tag);
  } else if (overlapped) pending = communicator.startRecv(ptr, length, from, tag);
  else communicator.recv(ptr, length, from, tag);
  const result = (): Uint8Array => {
    const bytes = taken(backend, ptr, length);
    return rank === to ? bytes : new Uint8Array(0);
  };
  return { pending, result };
}

/** For the report of a failure: the first result that is not what it must be, as a sentence; null where all are. */
export function firstDifference(program: Program, size: number, results: readonly (readonly Uint8Array[])[]): string | null {
  const members = [...Array(size).keys()];
  const expected = expectedResults(program, members);
  for (const rank of members) {
    const [got, want] = [results[rank] ?? [], expected[rank] ?? []];
    if (got.length !== want.length) return `rank ${rank}: expected ${want.length} results, got ${got.length}`;
    for (const [index, bytes] of want.entries()) {
      const other = got[index] ?? new Uint8Array(0);
      if (Buffer.compare(bytes, other) === 0) continue;
      const at = bytes.findIndex((byte, i) => byte !== other[i]);
      return `rank ${rank}, result ${index}: byte ${at} of ${bytes.length} (${other.length} came)`;
    }
  }
  return null;
}

/** Where a backend must end: every program frees what it took. */
export function checkNothingLive(backend: Backend): void {
  if (backend.liveBytes !== 0) throw new MoeError("internal", `a program left ${backend.liveBytes} bytes allocated`);
}
