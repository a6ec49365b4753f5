/**
 * The vocabulary of GGUF: value types of the metadata and storage types of tensors, with their codes and sizes.
 *
 * Metadata values keep their type (`{type: "uint32", value: 3}`), because readers of the format care: llama.cpp refuses a
 * uint64 where it expects a uint32, and what is read here can be written again unchanged. 64-bit integers are bigint.
 * Tensor types are stored in blocks along a row; a row is a whole number of blocks. Sizes: ggml's `block_q*` structures.
 */

/** Codes of metadata value types, in the order of the specification. */
export const GGUF_VALUE_TYPES = [
  "uint8",
  "int8",
  "uint16",
  "int16",
  "uint32",
  "int32",
  "float32",
  "bool",
  "string",
  "array",
  "uint64",
  "int64",
  "float64",
] as const;

export type GgufValueType = (typeof GGUF_VALUE_TYPES)[number];
export type GgufNumberType = "uint8" | "int8" | "uint16" | "int16" | "uint32" | "int32" | "float32" | "float64";

/** An array; every element has the same type. Arrays of arrays are allowed. */
export type GgufArray =
  | { readonly type: "array"; readonly elementType: GgufNumberType; readonly values: ArrayLike<number> }
  | { readonly type: "array"; readonly elementType: "uint64" | "int64"; readonly values: ArrayLike<bigint> }
  | { readonly type: "array"; readonly elementType: "bool"; readonly values: readonly boolean[] }
  | { readonly type: "array"; readonly elementType: "string"; readonly values: readonly string[] }
  | { readonly type: "array"; readonly elementType: "array"; readonly values: readonly GgufArray[] };

/** A metadata value with its type. */
export type GgufValue =
  | { readonly type: GgufNumberType; readonly value: number }
  | { readonly type: "uint64" | "int64"; readonly value: bigint }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | GgufArray;

/** Bytes of a value of fixed size; the least number of bytes of a string (its length) or an array (type and length). */
export const VALUE_BYTES: Readonly<Record<GgufValueType, number>> = {
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  uint32: 4,
  int32: 4,
  float32: 4,
  bool: 1,
  string: 8,
  array: 12,
  uint64: 8,
  int64: 8,
  float64: 8,
};

interface TensorTypeInfo {
  readonly code: number;
  /** Elements of a block. */
  readonly blockElements: number;
  /** Bytes of a block. */
  readonly blockBytes: number;
}

const info = (code: number, blockElements: number, blockBytes: number): TensorTypeInfo => ({ code, blockElements, blockBytes });

/** Every tensor type of the format, also those that cannot be dequantized here, so that such files can be listed. */
export const GGUF_TENSOR_TYPES = {
  F32: info(0, 1, 4),
  F16: info(1, 1, 2),
  Q4_0: info(2, 32, 18),
  Q4_1: info(3, 32, 20),
  Q5_0: info(6, 32, 22),
  Q5_1: info(7, 32, 24),
  Q8_0: info(8, 32, 34),
  Q8_1: info(9, 32, 40),
  Q2_K: info(10, 256, 84),
  Q3_K: info(11, 256, 110),
  Q4_K: info(12, 256, 144),
  Q5_K: info(13, 256, 176),
  Q6_K: info(14, 256, 210),
  Q8_K: info(15, 256, 292),
  IQ2_XXS: info(16, 256, 66),
  IQ2_XS: info(17, 256, 74),
  IQ3_XXS: info(18, 256, 98),
  IQ1_S: info(19, 256, 50),
  IQ4_NL: info(20, 32, 18),
  IQ3_S: info(21, 256, 110),
  IQ2_S: info(22, 256, 82),
  IQ4_XS: info(23, 256, 136),
  I8: info(24, 1, 1),
  I16: info(25, 1, 2),
  I32: info(26, 1, 4),
  I64: info(27, 1, 8),
  F64: info(28, 1, 8),
  IQ1_M: info(29, 256, 56),
  BF16: info(30, 1, 2),
  TQ1_0: info(34, 256, 54),
  TQ2_0: info(35, 256, 66),
  MXFP4: info(39, 32, 17),
  NVFP4: info(40, 64, 36),
  Q1_0: info(41, 128, 18),
} as const satisfies Readonly<Record<string, TensorTypeInfo>>;

export type GgufTensorType = keyof typeof GGUF_TENSOR_TYPES;

/** The tensor type of a code, or undefined. */
export function tensorTypeOfCode(code: number): GgufTensorType | undefined {
  for (const name of Object.keys(GGUF_TENSOR_TYPES)) {
    if (isGgufTensorType(name) && GGUF_TENSOR_TYPES[name].code === code) return name;
  }
  return undefined;
}

/** Whether `name` is a tensor type of the format. */
export function isGgufTensorType(name: string): name is GgufTensorType {
  return Object.hasOwn(GGUF_TENSOR_TYPES, name);
}
