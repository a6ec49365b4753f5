/**
 * GGUF's block formats to f32.
 *
 * A block holds a scale (f16) or two and small integers. Every product below is exact in double precision, so there is one
 * rounding, when the value is stored; the results are the bits that ggml and its Python package give. Free functions over
 * typed arrays, no allocation per block. Layouts: the `block_q*` structures of ggml (ggml-common.h); a nibble array packs
 * element j and element j + half of the block into one byte. Not here: quantization, and the types nobody asked for yet.
 */
import { MoeError } from "../util/errors.ts";
import { bfloat16ToFloat32, float16ToFloat32 } from "./dtypes.ts";
import { GGUF_TENSOR_TYPES } from "./gguf-types.ts";
import type { GgufTensorType } from "./gguf-types.ts";

/** The types that can be turned into f32. */
export const DEQUANTIZABLE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"] as const;
export type DequantizableType = (typeof DEQUANTIZABLE)[number];

/** Whether `dequantize` handles this type. */
export function isDequantizable(type: GgufTensorType): type is DequantizableType {
  return DEQUANTIZABLE.some((t) => t === type);
}

/** A run of blocks: as bytes and, for the scales, as f16 and i8. */
interface Blocks {
  readonly u8: Uint8Array;
  readonly i8: Int8Array;
  readonly f16: Float16Array;
}

/** Q8_0: f16 d, 32 x i8 q; value d q. */
function q8_0({ i8, f16 }: Blocks, out: Float32Array): void {
  for (let b = 0, o = 0; o < out.length; b += 34, o += 32) {
    const d = f16[b >> 1] ?? 0;
    for (let j = 0; j < 32; j++) out[o + j] = d * (i8[b + 2 + j] ?? 0);
  }
}

/** Q4_0: f16 d, 16 bytes of nibbles q; value d (q - 8). */
function q4_0({ u8, f16 }: Blocks, out: Float32Array): void {
  for (let b = 0, o = 0; o < out.length; b += 18, o += 32) {
    const d = f16[b >> 1] ?? 0;
    for (let j = 0; j < 16; j++) {
      const q = u8[b + 2 + j] ?? 0;
      out[o + j] = d * ((q & 15) - 8);
      out[o + 16 + j] = d * ((q >> 4) - 8);
    }
  }
}

/** Q4_1: f16 d, f16 m, 16 bytes of nibbles q; value d q + m. */
function q4_1({ u8, f16 }: Blocks, out: Float32Array): void {
  for (let b = 0, o = 0; o < out.length; b += 20, o += 32) {
    const d = f16[b >> 1] ?? 0;
    const m = f16[(b >> 1) + 1] ?? 0;
    for (let j = 0; j < 16; j++) {
      const q = u8[b + 4 + j] ?? 0;
      out[o + j] = d * (q & 15) + m;
      out[o + 16 + j] = d * (q >> 4) + m;
    }
  }
}

/**
 * Q4_K: f16 d, f16 dmin, 12 bytes with eight 6-bit scales and eight 6-bit minima, 128 bytes of nibbles; eight groups of 32,
 * two to each 32 bytes (low nibbles, then high). Value d scale q - dmin min.
 */
function q4_k({ u8, f16 }: Blocks, out: Float32Array): void {
  for (let b = 0, o = 0; o < out.length; b += 144, o += 256) {
    const d = f16[b >> 1] ?? 0;
    const dmin = f16[(b >> 1) + 1] ?? 0;
    for (let group = 0; group < 8; group++) {
      const k = b + 4 + (group & 3);
      const first = u8[k] ?? 0;
      const second = u8[k + 4] ?? 0;
      const third = u8[k + 8] ?? 0;
      const scale = group < 4 ? first & 63 : (third & 15) | ((first >> 2) & 48);
      const minimum = group < 4 ? second & 63 : (third >> 4) | ((second >> 2) & 48);
      const ds = d * scale;
      const dm = dmin * minimum;
      const from = b + 16 + (group >> 1) * 32;
      const shift = (group & 1) * 4;
      const to = o + group * 32;
      for (let j = 0; j < 32; j++) out[to + j] = ds * (((u8[from + j] ?? 0) >> shift) & 15) - dm;
    }
  }
}

/**
 * Q6_K: 128 bytes of low nibbles, 64 bytes of upper bit pairs, sixteen i8 scales, f16 d; two halves of 128, each four runs of 32.
 * Value d scale (q - 32).
 */
function q6_k({ u8, i8, f16 }: Blocks, out: Float32Array): void {
  for (let b = 0, o = 0; o < out.length; b += 210, o += 256) {
    const d = f16[(b + 208) >> 1] ?? 0;
    for (let run = 0; run < 8; run++) {
      const half = run >> 2;
      const low = b + half * 64 + (run & 1) * 32;
      const lowShift = (run & 2) * 2;
      const high = b + 128 + half * 32;
      const highShift = (run & 3) * 2;
      const to = o + run * 32;
      for (let part = 0; part < 2; part++) {
        const ds = d * (i8[b + 192 + run * 2 + part] ?? 0);
        for (let j = part * 16; j < part * 16 + 16; j++) {
          const q = (((u8[low + j] ?? 0) >> lowShift) & 15) | ((((u8[high + j] ?? 0) >> highShift) & 3) << 4);
          out[to + j] = ds * (q - 32);
        }
      }
    }
  }
}

/**
 * Turns `into.length` elements of `type` into f32. `bytes` holds exactly their blocks and `into.length` is a whole number of
 * blocks (errors of kind `shape`). Bits equal `gguf.quants.dequantize` of the Python package.
 */
export function dequantize(type: DequantizableType, bytes: Uint8Array, into: Float32Array): void {
  const { blockElements, blockBytes } = GGUF_TENSOR_TYPES[type];
  if (into.length % blockElements !== 0 || bytes.byteLength !== (into.length / blockElements) * blockBytes) {
    throw new MoeError(
      "shape",
      `dequantize: expected ${into.length} elements to be whole blocks of ${type} (${blockElements} elements, ${blockBytes} bytes), got ${bytes.byteLength} bytes`,
    );
  }
  const at = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  const { buffer, byteOffset, byteLength } = at;
  if (type === "F32") return into.set(new Float32Array(buffer, byteOffset, into.length));
  if (type === "BF16") return bfloat16ToFloat32(new Uint16Array(buffer, byteOffset, into.length), into);
  // All blocks have an even number of bytes, so every scale is aligned as an f16.
  const f16 = new Float16Array(buffer, byteOffset, byteLength >> 1);
  if (type === "F16") return float16ToFloat32(f16, into);
  const blocks = { u8: at, i8: new Int8Array(buffer, byteOffset, byteLength), f16 };
  switch (type) {
    case "Q8_0":
      return q8_0(blocks, into);
    case "Q4_0":
      return q4_0(blocks, into);
    case "Q4_1":
      return q4_1(blocks, into);
    case "Q4_K":
      return q4_k(blocks, into);
    case "Q6_K":
      return q6_k(blocks, into);
    default:
      return type satisfies never;
  }
}
