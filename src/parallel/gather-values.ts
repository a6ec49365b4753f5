/** Values of JavaScript (numbers, text, typed arrays, plain objects) from every rank to every rank: for what is small and comes once a step. */
import { deserialize, serialize } from "node:v8";
import type { Engine } from "../tensor/index.ts";
import type { Communicator } from "./communicator.ts";

/** What each rank gave, in rank order, on every rank. All ranks call it alike. Throws `communication`. */
export function gatherValues<T>(engine: Engine, communicator: Communicator, value: T): T[] {
  const { size } = communicator;
  if (size === 1) return [value];
  const bytes = serialize(value);
  using lengths = engine.detached([size], "i32");
  using length = engine.detached([1], "i32");
  engine.backend.write(length.ptr, Int32Array.of(bytes.length));
  communicator.allGather(lengths.ptr, length.ptr, Array<number>(size).fill(4));
  const counts = [...lengths.toInt32Array()];
  using own = engine.detached([Math.ceil(bytes.length / 4)], "f32");
  engine.backend.write(own.ptr, new Uint8Array(bytes));
  const total = counts.reduce((a, b) => a + b, 0);
  using all = engine.detached([Math.ceil(total / 4)], "f32");
  communicator.allGather(all.ptr, own.ptr, counts);
  const gathered = new Uint8Array(total);
  engine.backend.read(gathered, all.ptr);
  let at = 0;
  // They come from this program: of another version, ranks would not have come this far together.
  return counts.map((count) => deserialize(gathered.subarray(at, (at += count))) as T);
}
