/**
 * What the loader needs of a file of weights, whatever its format: tensors under Hugging Face names, their values in f32, and
 * where possible the bytes themselves.
 */
import type { GgufWeights } from "../checkpoint/gguf-weights.ts";
import type { ModelWeights } from "../checkpoint/model-weights.ts";
import type { ModelDType } from "./parameters.ts";

/** Bytes of a tensor that are stored exactly as a parameter of type `dtype` is. */
export interface RawTensor {
  readonly dtype: ModelDType;
  /** File that holds them, and where. */
  readonly path: string;
  readonly offset: number;
  read(into: Uint8Array, fromByte: number): void;
}

export interface WeightSource {
  /** For messages. */
  readonly path: string;
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[] }>;
  /** Fills `into` with elements from element `from` on, converted to f32. */
  readFloat32(name: string, into: Float32Array, from: number): void;
  /** Null where the tensor is stored as something else than f32 or bf16 in our order. */
  raw(name: string): RawTensor | null;
  /** Whether matrices are stored in f32 (rather than in 16 bits or fewer). */
  readonly isFloat32: boolean;
}

/** What names the type of all matrices. */
const embedding = "model.embed_tokens.weight";

export function safetensorsSource(weights: ModelWeights): WeightSource {
  const stored = weights.tensors.get(embedding)?.dtype;
  return {
    path: weights.path,
    tensors: weights.tensors,
    isFloat32: stored === "F32" || stored === "F64",
    readFloat32: (name, into, from) => weights.readFloat32(name, into, from),
    raw: (name) => {
      const entry = weights.entry(name);
      const file = weights.files.find((candidate) => candidate.tensors.get(name) === entry);
      if (file === undefined || (entry.dtype !== "F32" && entry.dtype !== "BF16")) return null;
      return {
        dtype: entry.dtype === "F32" ? "f32" : "bf16",
        path: file.path,
        offset: entry.offset,
        read: (into, fromByte) => weights.read(name, into, fromByte),
      };
    },
  };
}

/** GGUF is always converted: blocks are dequantized, and rows of queries and keys may be in another order. */
export function ggufSource(weights: GgufWeights): WeightSource {
  const { ggufName } = weights.entry(embedding);
  return {
    path: weights.path,
    tensors: weights.tensors,
    isFloat32: weights.file.entry(ggufName).type === "F32",
    readFloat32: (name, into, from) => weights.readFloat32(name, into, from),
    raw: () => null,
  };
}
