/**
 * Memory of the reference backend: one ArrayBuffer an allocation, and every access checked.
 *
 * A pointer is `id * 2^32 + offset`, so interior pointers resolve by arithmetic, and a pointer that runs off its
 * allocation can never land in a neighbour. Reads and writes outside an allocation, of freed memory, or at an address
 * not aligned to its element throw `MoeError` of kind `internal`: run on this backend, a test of the tensor layer or of a
 * model is also a memory check. Further help to find mistakes: fresh memory is filled with 0xff (NaN in every float type, -1 as i32);
 * freeing detaches the buffer, which empties the views that callers kept; ids are used again only after 2^20 others.
 *
 * Not an allocator to learn performance from: it does not pool.
 */
import type { DTypeCode, Ptr } from "../kernels.ts";
import { dtypeCodes } from "../kernels.ts";
import { decodeFp8 } from "../../util/fp8.ts";
import { MoeError } from "../../util/errors.ts";
import { decodeBf16, elementBytes, encodeBf16 } from "./convert.ts";

const span = 2 ** 32;
const maxId = 2 ** 20;

/** Element `i` of a loaded operand. A read past its end is a mistake in the kernel (or an index that nobody validated). */
export function at(values: Float64Array | Int32Array, i: number): number {
  const value = values[i];
  if (value === undefined) throw new MoeError("internal", `reference: expected an index below ${values.length}, got ${i}`);
  return value;
}

export class ReferenceMemory {
  readonly #buffers = new Map<number, ArrayBuffer>();
  /** Ids to use again, oldest first, from `#firstFreed` on. */
  #freed: number[] = [];
  #firstFreed = 0;
  #nextId = 1;
  #liveBytes = 0;
  #peakBytes = 0;

  get liveBytes(): number {
    return this.#liveBytes;
  }
  get peakBytes(): number {
    return this.#peakBytes;
  }
  resetPeak(): void {
    this.#peakBytes = this.#liveBytes;
  }

  /** Exactly `byteLength` bytes (0 included), less than 4 GiB. */
  alloc(byteLength: number): Ptr {
    if (!Number.isInteger(byteLength) || byteLength < 0) {
      throw new MoeError("internal", `reference alloc: expected a count of bytes, got ${byteLength}`);
    }
    if (byteLength >= span) {
      throw new MoeError(
        "resource",
        `reference alloc: expected less than 4 GiB in one allocation, got ${byteLength} bytes; use the native backend`,
      );
    }
    const id = this.#takeId();
    const buffer = new ArrayBuffer(byteLength);
    new Uint8Array(buffer).fill(0xff);
    this.#buffers.set(id, buffer);
    this.#liveBytes += byteLength;
    this.#peakBytes = Math.max(this.#peakBytes, this.#liveBytes);
    return id * span;
  }

  #takeId(): number {
    if (this.#nextId < maxId) return this.#nextId++;
    const id = this.#freed[this.#firstFreed++];
    if (id === undefined) throw new MoeError("resource", `reference alloc: ${maxId - 1} allocations are live, which is the limit`);
    if (this.#firstFreed === maxId) {
      this.#freed = this.#freed.slice(maxId);
      this.#firstFreed = 0;
    }
    return id;
  }

  free(ptr: Ptr): void {
    const id = Math.floor(ptr / span);
    const buffer = this.#buffers.get(id);
    if (buffer === undefined || ptr % span !== 0) {
      throw new MoeError("internal", `reference free: expected the start of a live allocation, got ${describe(ptr)}`);
    }
    this.#liveBytes -= buffer.byteLength;
    this.#buffers.delete(id);
    this.#freed.push(id);
    buffer.transfer(0);
  }

  dispose(): void {
    for (const id of this.#buffers.keys()) this.free(id * span);
  }

  /** The `byteLength` bytes at `ptr`, not a copy. */
  bytes(ptr: Ptr, byteLength: number, alignment = 1): Uint8Array<ArrayBuffer> {
    const buffer = this.#buffers.get(Math.floor(ptr / span));
    const offset = ptr % span;
    if (buffer === undefined)
      throw new MoeError("internal", `reference: expected a live pointer, got ${describe(ptr)} (null, freed or never allocated)`);
    if (offset + byteLength > buffer.byteLength) {
      throw new MoeError(
        "internal",
        `reference: expected an access within the ${buffer.byteLength} bytes of its allocation, got bytes ${offset} to ${offset + byteLength} of ${describe(ptr)}`,
      );
    }
    if (offset % alignment !== 0)
      throw new MoeError("internal", `reference: expected a pointer aligned to ${alignment}, got ${describe(ptr)}`);
    return new Uint8Array(buffer, offset, byteLength);
  }

  /** A copy, as f64, of `count` elements. Nothing is accessed when `count` is 0. */
  load(ptr: Ptr, count: number, dtype: DTypeCode): Float64Array {
    if (count === 0) return new Float64Array(0);
    const width = elementBytes(dtype);
    const { buffer, byteOffset } = this.bytes(ptr, count * width, width);
    switch (dtype) {
      case dtypeCodes.f32:
        return new Float64Array(new Float32Array(buffer, byteOffset, count));
      case dtypeCodes.bf16:
        return decodeBf16(new Uint16Array(buffer, byteOffset, count));
      case dtypeCodes.f16:
        return new Float64Array(new Float16Array(buffer, byteOffset, count));
      case dtypeCodes.i32:
        return new Float64Array(new Int32Array(buffer, byteOffset, count));
      case dtypeCodes.fp8:
        return Float64Array.from(new Uint8Array(buffer, byteOffset, count), (code) => decodeFp8("e4m3", code));
      default:
        return dtype satisfies never;
    }
  }

  /** `load` of f32. */
  loadF32(ptr: Ptr, count: number): Float64Array {
    return this.load(ptr, count, dtypeCodes.f32);
  }

  /** A copy of `count` int32. */
  loadI32(ptr: Ptr, count: number): Int32Array {
    if (count === 0) return new Int32Array(0);
    const { buffer, byteOffset } = this.bytes(ptr, count * 4, 4);
    return new Int32Array(buffer, byteOffset, count).slice();
  }

  /** Writes all of `values`, rounded once to nearest even. Checks before it writes. */
  store(ptr: Ptr, values: Float64Array, dtype: DTypeCode): void {
    if (values.length === 0) return;
    const width = elementBytes(dtype);
    const { buffer, byteOffset } = this.bytes(ptr, values.length * width, width);
    switch (dtype) {
      case dtypeCodes.f32:
        return new Float32Array(buffer, byteOffset, values.length).set(values);
      case dtypeCodes.bf16:
        return new Uint16Array(buffer, byteOffset, values.length).set(encodeBf16(values));
      case dtypeCodes.f16:
        return new Float16Array(buffer, byteOffset, values.length).set(values);
      case dtypeCodes.i32:
        throw new MoeError("internal", "reference store: expected a float dtype, got i32 (integers go through storeI32)");
      case dtypeCodes.fp8:
        throw new MoeError("internal", "reference store: expected a float dtype, got fp8 (castToFp8 makes codes)");
    }
  }

  /** `store` as f32. */
  storeF32(ptr: Ptr, values: Float64Array): void {
    this.store(ptr, values, dtypeCodes.f32);
  }

  /** Overwrites, or with `accumulate` adds to what is there; either way one rounding. */
  storeOrAdd(ptr: Ptr, values: Float64Array, dtype: DTypeCode, accumulate: number): void {
    if (accumulate === 0) return this.store(ptr, values, dtype);
    const sums = this.load(ptr, values.length, dtype);
    for (let i = 0; i < sums.length; i++) sums[i] = at(sums, i) + at(values, i);
    this.store(ptr, sums, dtype);
  }

  storeI32(ptr: Ptr, values: Int32Array): void {
    if (values.length === 0) return;
    const { buffer, byteOffset } = this.bytes(ptr, values.length * 4, 4);
    new Int32Array(buffer, byteOffset, values.length).set(values);
  }

  /** One f64. */
  storeF64(ptr: Ptr, value: number): void {
    const { buffer, byteOffset } = this.bytes(ptr, 8, 8);
    new Float64Array(buffer, byteOffset, 1).set([value]);
  }
}

function describe(ptr: Ptr): string {
  return `allocation ${Math.floor(ptr / span)} + ${ptr % span}`;
}
