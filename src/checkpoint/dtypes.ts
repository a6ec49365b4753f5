/**
 * The number formats of weight files, by name and size, and their way to f32 and back.
 *
 * Names are those of the safetensors format. Values are little-endian, as in the files and on every machine this runs on.
 * f32 to f16 and bf16 rounds to nearest, ties to even; from a narrower format to f32 is exact. Plain loops over typed arrays:
 * about a nanosecond an element, which is faster than the disk. Not here: block-quantized GGUF types (gguf-dequantize.ts) and
 * the compute types of the backends.
 */
import { MoeError } from "../util/errors.ts";

const SIZES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
} as const;

/** A number format of a safetensors file. */
export type FileDtype = keyof typeof SIZES;

/** All formats known. */
export const FILE_DTYPES: readonly FileDtype[] = Object.freeze(Object.keys(SIZES).filter(isFileDtype));

/** Whether `name` is a format known here. */
export function isFileDtype(name: string): name is FileDtype {
  return Object.hasOwn(SIZES, name);
}

/** Bytes of one element. */
export function dtypeBytes(dtype: FileDtype): number {
  return SIZES[dtype];
}

/**
 * Elements of a shape, or undefined when a dimension is not a non-negative safe integer or the product (taken in order, as
 * the file format's own library does, so a zero at the end excuses nothing) leaves the safe integers.
 */
export function countElements(shape: readonly number[]): number | undefined {
  let count = 1;
  for (const dim of shape) {
    if (!Number.isSafeInteger(dim) || dim < 0) return undefined;
    if (dim > 0 && count > Number.MAX_SAFE_INTEGER / dim) return undefined;
    count *= dim;
  }
  return count;
}

/** bf16 is the upper half of an f32. `bits` and `into` have the same length. */
export function bfloat16ToFloat32(bits: Uint16Array, into: Float32Array): void {
  const out = new Uint32Array(into.buffer, into.byteOffset, into.length);
  for (let i = 0; i < out.length; i++) out[i] = (bits[i] ?? 0) << 16;
}

/** Rounds to nearest even; NaN stays a (quiet) NaN. `from` and `bits` have the same length. */
export function float32ToBfloat16(from: Float32Array, bits: Uint16Array): void {
  const x = new Uint32Array(from.buffer, from.byteOffset, from.length);
  for (let i = 0; i < x.length; i++) {
    const v = x[i] ?? 0;
    bits[i] = (v & 0x7fffffff) > 0x7f800000 ? (v >>> 16) | 0x40 : (v + 0x7fff + ((v >>> 16) & 1)) >>> 16;
  }
}

/** f16 bits to f32, exactly. `from` and `into` have the same length. */
export function float16ToFloat32(from: Float16Array, into: Float32Array): void {
  // A plain loop is twice as fast as TypedArray.set here (V8 14).
  for (let i = 0; i < into.length; i++) into[i] = from[i] ?? 0;
}

/** Value of each of the 256 bit patterns of an 8-bit float of `exponentBits`; `e4m3fn` has no infinities and one NaN per sign. */
function eightBitFloats(exponentBits: 4 | 5): Float32Array {
  const mantissaBits = 7 - exponentBits;
  const bias = (1 << (exponentBits - 1)) - 1;
  const table = new Float32Array(256);
  for (let bits = 0; bits < 256; bits++) {
    const exponent = (bits & 0x7f) >> mantissaBits;
    const mantissa = bits & ((1 << mantissaBits) - 1);
    let value = exponent === 0 ? mantissa * 2 ** (1 - bias - mantissaBits) : (1 + mantissa / (1 << mantissaBits)) * 2 ** (exponent - bias);
    if (exponentBits === 4 && (bits & 0x7f) === 0x7f) value = Number.NaN;
    if (exponentBits === 5 && exponent === 31) value = mantissa === 0 ? Number.POSITIVE_INFINITY : Number.NaN;
    table[bits] = bits & 0x80 ? -value : value;
  }
  return table;
}

/** The bytes as an array of `count` elements, copied only when the address is not a multiple of the element's size. */
function aligned(bytes: Uint8Array, elementBytes: number): { buffer: ArrayBufferLike; byteOffset: number } {
  return bytes.byteOffset % elementBytes === 0 ? bytes : { buffer: bytes.slice().buffer, byteOffset: 0 };
}

/**
 * Converts `into.length` little-endian elements of `dtype` to f32: exact for formats that fit, rounded to nearest for F64 and
 * wide integers. `bytes` must hold exactly that many elements (error of kind `shape` otherwise).
 */
export function toFloat32(dtype: FileDtype, bytes: Uint8Array, into: Float32Array): void {
  const size = SIZES[dtype];
  const n = into.length;
  if (bytes.byteLength !== n * size) {
    throw new MoeError("shape", `toFloat32: expected ${n * size} bytes for ${n} elements of ${dtype}, got ${bytes.byteLength}`);
  }
  const { buffer, byteOffset } = aligned(bytes, size);
  switch (dtype) {
    case "F32":
      return into.set(new Float32Array(buffer, byteOffset, n));
    case "F64":
      return into.set(new Float64Array(buffer, byteOffset, n));
    case "F16":
      return float16ToFloat32(new Float16Array(buffer, byteOffset, n), into);
    case "BF16":
      return bfloat16ToFloat32(new Uint16Array(buffer, byteOffset, n), into);
    case "I64":
      return new BigInt64Array(buffer, byteOffset, n).forEach((v, i) => (into[i] = Number(v)));
    case "U64":
      return new BigUint64Array(buffer, byteOffset, n).forEach((v, i) => (into[i] = Number(v)));
    case "I32":
      return into.set(new Int32Array(buffer, byteOffset, n));
    case "U32":
      return into.set(new Uint32Array(buffer, byteOffset, n));
    case "I16":
      return into.set(new Int16Array(buffer, byteOffset, n));
    case "U16":
      return into.set(new Uint16Array(buffer, byteOffset, n));
    case "I8":
      return into.set(new Int8Array(buffer, byteOffset, n));
    case "U8":
    case "BOOL":
      return into.set(bytes);
    case "F8_E4M3":
    case "F8_E5M2": {
      const table = eightBitFloats(dtype === "F8_E4M3" ? 4 : 5);
      for (let i = 0; i < n; i++) into[i] = table[bytes[i] ?? 0] ?? 0;
      return;
    }
    default:
      return dtype satisfies never;
  }
}

/**
 * Converts f32 to the bytes of F32, F16 or BF16, rounding to nearest even. `into` must have exactly the right length and an
 * address that is a multiple of the element size (errors of kind `shape`).
 */
export function fromFloat32(dtype: "F32" | "F16" | "BF16", from: Float32Array, into: Uint8Array): void {
  const size = SIZES[dtype];
  if (into.byteLength !== from.length * size || into.byteOffset % size !== 0) {
    throw new MoeError(
      "shape",
      `fromFloat32: expected ${from.length * size} aligned bytes for ${from.length} elements of ${dtype}, got ${into.byteLength} at ${into.byteOffset}`,
    );
  }
  switch (dtype) {
    case "F32":
      return new Float32Array(into.buffer, into.byteOffset, from.length).set(from);
    case "F16": {
      const out = new Float16Array(into.buffer, into.byteOffset, from.length);
      for (let i = 0; i < out.length; i++) out[i] = from[i] ?? 0;
      return;
    }
    case "BF16":
      return float32ToBfloat16(from, new Uint16Array(into.buffer, into.byteOffset, from.length));
    default:
      return dtype satisfies never;
  }
}
