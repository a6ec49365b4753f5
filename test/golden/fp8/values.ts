/** What make.py gave PyTorch, and what PyTorch made of it. */
import { readFileSync } from "node:fs";
import type { Fp8Format } from "../../../src/util/fp8.ts";

/** PyTorch 2.15's codes. */
export interface Fp8Golden {
  readonly values: readonly (number | null)[];
  readonly count: number;
  readonly codesSha256: string;
  readonly boundaryBits: readonly number[];
  readonly boundaryCodes: readonly number[];
}
export const fp8Golden = JSON.parse(readFileSync(new URL("./fp8.json", import.meta.url), "utf8")) as Readonly<Record<Fp8Format, Fp8Golden>>;

/** The values of make.py: a million xorshift words, the exponent moved into a range, those in PyTorch's finite range kept. */
export function millionValues(format: Fp8Format): Float32Array {
  const [limit, low, span] = format === "e4m3" ? [464, 112, 25] : [61440, 105, 40];
  const words = new Uint32Array(1_000_000);
  let x = 2463534242;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = (x & 0x807fffff) | (((((x >>> 23) & 255) % span) + low) << 23);
  }
  return new Float32Array(words.buffer).filter((value) => Math.abs(value) < limit);
}
