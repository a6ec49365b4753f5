/** What ranks of the communicator's tests do. */
import type { Backend } from "../../src/backend/backend.ts";
import type { Communicator } from "../../src/parallel/index.ts";
import { Random } from "../../src/util/random.ts";

export type Operation =
  | { readonly type: "sum"; readonly dtype: "f32" | "bf16"; readonly count: number }
  | { readonly type: "gather"; readonly lengths: readonly number[] }
  | { readonly type: "broadcast"; readonly length: number; readonly root: number }
  | { readonly type: "share"; readonly length: number; readonly root: number }
  | { readonly type: "barriers"; readonly count: number }
  /** One rank does not come. */
  | { readonly type: "absent"; readonly rank: number; readonly how: "throws" | "exits" | "sleeps" | "elsewhere" };

/** What rank r puts in: bits of f32 or bf16, or bytes. */
export function inputOf(operation: Operation, rank: number, index: number): Uint8Array<ArrayBuffer> {
  const random = Random.keyed(9, rank, index);
  switch (operation.type) {
    case "sum": {
      const values = random.fillNormal(new Float32Array(operation.count + (operation.count % 2)), 10).subarray(0, operation.count);
      if (operation.dtype === "f32") return new Uint8Array(Float32Array.from(values).buffer);
      // The upper half of an f32 is a bf16.
      return new Uint8Array(Uint16Array.from(new Uint32Array(Float32Array.from(values).buffer), (bits) => bits >>> 16).buffer);
    }
    case "gather":
      return Uint8Array.from({ length: operation.lengths[rank] ?? 0 }, () => random.uint32());
    case "broadcast":
    case "share":
      return Uint8Array.from({ length: operation.length }, () => random.uint32());
    case "barriers":
    case "absent":
      return new Uint8Array(0);
    default:
      return operation satisfies never;
  }
}

/** Takes part in an operation, and gives what came out for this rank. */
export function runOperation(backend: Backend, communicator: Communicator, operation: Operation, index: number): Uint8Array {
  const input = inputOf(operation, communicator.rank, index);
  const length = operation.type === "gather" ? operation.lengths.reduce((a, b) => a + b, 0) : input.length;
  const [ptr, out] = [backend.alloc(input.length), backend.alloc(length)];
  const result = new Uint8Array(length);
  try {
    backend.write(ptr, input);
    switch (operation.type) {
      case "sum":
        communicator.allReduce(ptr, operation.count, operation.dtype);
        backend.read(result, ptr);
        return result;
      case "gather":
        communicator.allGather(out, ptr, operation.lengths);
        backend.read(result, out);
        return result;
      case "broadcast":
        communicator.broadcast(ptr, operation.length, operation.root);
        backend.read(result, ptr);
        return result;
      case "share":
        return communicator.share(communicator.rank === operation.root ? input : null, operation.root);
      case "barriers":
        for (let i = 0; i < operation.count; i++) communicator.barrier();
        return result;
      case "absent":
        if (communicator.rank !== operation.rank) communicator.barrier();
        else if (operation.how === "throws") throw new Error("this rank gives up");
        else if (operation.how === "elsewhere") communicator.share(input, communicator.rank);
        else if (operation.how === "exits") process.exit(3);
        else Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3000);
        return result;
      default:
        return operation satisfies never;
    }
  } finally {
    backend.free(ptr);
    backend.free(out);
  }
}
