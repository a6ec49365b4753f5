/**
 * Writes GGUF version 3, little-endian: metadata of every value type, tensors as F32, F16 or BF16.
 *
 * As with safetensors, everything is declared first and the tensors' bytes follow in the declared order, straight to the
 * disk; the file takes its name at `commit()`. Conversion to f16 or bf16 is `fromFloat32` (dtypes.ts). The writer checks what
 * would make a file unreadable (names, ranges of integers, at most four dimensions), not whether llama.cpp knows the
 * architecture. Layout and metadata keys: gguf.ts.
 */
import { MoeError } from "../util/errors.ts";
import { countElements } from "./dtypes.ts";
import { GGUF_TENSOR_TYPES, GGUF_VALUE_TYPES } from "./gguf-types.ts";
import type { GgufArray, GgufValue, GgufValueType } from "./gguf-types.ts";
import { TensorFileWriter } from "./tensor-file-writer.ts";
import type { Placement } from "./tensor-file-writer.ts";

/** A tensor to be written: row-major shape (the writer reverses it), at most four dimensions. */
export interface GgufTensorDeclaration {
  readonly name: string;
  readonly type: "F32" | "F16" | "BF16";
  readonly shape: readonly number[];
}

/** ggml keeps names in 64 bytes, the last of which is zero. */
const MAX_NAME_BYTES = 63;

/** Bytes that grow at the end, little-endian. */
class ByteBuilder {
  #bytes = new Uint8Array(1 << 12);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** A view of `count` new bytes. */
  grow(count: number): DataView {
    if (this.#length + count > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(this.#length + count, this.#bytes.length * 2));
      larger.set(this.bytes);
      this.#bytes = larger;
    }
    this.#length += count;
    return new DataView(this.#bytes.buffer, this.#length - count, count);
  }

  uint32(value: number): void {
    this.grow(4).setUint32(0, value, true);
  }

  uint64(value: bigint | number): void {
    this.grow(8).setBigUint64(0, BigInt(value), true);
  }

  string(value: string): void {
    const bytes = new TextEncoder().encode(value);
    this.uint64(bytes.length);
    const view = this.grow(bytes.length);
    new Uint8Array(view.buffer, view.byteOffset, bytes.length).set(bytes);
  }
}

const INTEGER_RANGES: Readonly<Partial<Record<GgufValueType, readonly [number, number]>>> = {
  uint8: [0, 255],
  int8: [-128, 127],
  uint16: [0, 65535],
  int16: [-32768, 32767],
  uint32: [0, 2 ** 32 - 1],
  int32: [-(2 ** 31), 2 ** 31 - 1],
};

type Scalar = number | bigint | boolean | string;

function outOfRange(what: string, type: GgufValueType, value: unknown): never {
  throw new MoeError(
    "internal",
    `GGUF ${what}: expected a value of type ${type}, got ${typeof value === "string" ? JSON.stringify(value.slice(0, 40)) : String(value)}`,
  );
}

/** Writes one value of a type that is not an array. */
function putScalar(out: ByteBuilder, type: Exclude<GgufValueType, "array">, value: Scalar | undefined, what: string): void {
  if (type === "string") {
    if (typeof value !== "string" || !value.isWellFormed()) outOfRange(what, type, value);
    return out.string(value);
  }
  if (type === "bool") {
    if (typeof value !== "boolean") outOfRange(what, type, value);
    return out.grow(1).setUint8(0, value ? 1 : 0);
  }
  if (type === "uint64" || type === "int64") {
    if (typeof value !== "bigint" || (type === "uint64" ? BigInt.asUintN(64, value) : BigInt.asIntN(64, value)) !== value)
      outOfRange(what, type, value);
    return type === "uint64" ? out.uint64(value) : out.grow(8).setBigInt64(0, value, true);
  }
  if (typeof value !== "number") outOfRange(what, type, value);
  const range = INTEGER_RANGES[type];
  if (range !== undefined && !(Number.isInteger(value) && value >= range[0] && value <= range[1])) outOfRange(what, type, value);
  switch (type) {
    case "uint8":
      return out.grow(1).setUint8(0, value);
    case "int8":
      return out.grow(1).setInt8(0, value);
    case "uint16":
      return out.grow(2).setUint16(0, value, true);
    case "int16":
      return out.grow(2).setInt16(0, value, true);
    case "uint32":
      return out.grow(4).setUint32(0, value, true);
    case "int32":
      return out.grow(4).setInt32(0, value, true);
    case "float32":
      return out.grow(4).setFloat32(0, value, true);
    case "float64":
      return out.grow(8).setFloat64(0, value, true);
    default:
      return type satisfies never;
  }
}

function putArray(out: ByteBuilder, array: GgufArray, what: string): void {
  out.uint32(GGUF_VALUE_TYPES.indexOf(array.elementType));
  out.uint64(array.values.length);
  if (array.elementType === "array") {
    for (const inner of array.values) putArray(out, inner, what);
    return;
  }
  for (let i = 0; i < array.values.length; i++) putScalar(out, array.elementType, array.values[i], what);
}

function putMetadata(out: ByteBuilder, key: string, value: GgufValue): void {
  const what = `metadata ${JSON.stringify(key)}`;
  if (key === "" || !key.isWellFormed()) throw new MoeError("internal", `GGUF ${what}: expected a well-formed key`);
  out.string(key);
  out.uint32(GGUF_VALUE_TYPES.indexOf(value.type));
  if (value.type === "array") putArray(out, value, what);
  else putScalar(out, value.type, value.value, what);
}

function checkTensor({ name, shape, type }: GgufTensorDeclaration, names: Set<string>): number {
  if (names.has(name) || !name.isWellFormed() || new TextEncoder().encode(name).length > MAX_NAME_BYTES) {
    throw new MoeError(
      "unsupported",
      `GGUF: expected different tensor names of at most ${MAX_NAME_BYTES} bytes, got ${JSON.stringify(name)}${names.has(name) ? " twice" : ""}`,
    );
  }
  names.add(name);
  const bytes = (countElements(shape) ?? Number.NaN) * GGUF_TENSOR_TYPES[type].blockBytes;
  if (shape.length > 4 || !Number.isSafeInteger(bytes)) {
    throw new MoeError(
      "shape",
      `GGUF tensor ${JSON.stringify(name)}: expected at most 4 non-negative dimensions, got [${shape.join(", ")}]`,
    );
  }
  return bytes;
}

/**
 * Starts a GGUF file. `metadata` is written in its order (llama.cpp wants `general.architecture`); a `general.alignment` in
 * it is obeyed (default 32). Deliver the tensors' bytes with `write`, in the declared order, then `commit()`.
 *
 * ```ts
 * const metadata = new Map<string, GgufValue>([["general.architecture", { type: "string", value: "llama" }]]);
 * using writer = createGguf("out.gguf", metadata, [{ name: "output_norm.weight", type: "F32", shape: [4] }]);
 * writer.write("output_norm.weight", new Uint8Array(16));
 * writer.commit();
 * ```
 */
export function createGguf(
  filePath: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensorDeclaration[],
): TensorFileWriter {
  const declared = metadata.get("general.alignment");
  const alignment = declared === undefined ? 32 : declared.type === "uint32" ? declared.value : 0;
  if (alignment < 1 || (alignment & (alignment - 1)) !== 0)
    throw new MoeError("internal", `${filePath}: expected general.alignment to be a uint32 and a power of two`);
  const align = (offset: number): number => Math.ceil(offset / alignment) * alignment;

  const out = new ByteBuilder();
  out.uint32(0x46554747);
  out.uint32(3);
  out.uint64(tensors.length);
  out.uint64(metadata.size);
  for (const [key, value] of metadata) putMetadata(out, key, value);
  const names = new Set<string>();
  const relative: Placement[] = [];
  let at = 0;
  for (const tensor of tensors) {
    const byteLength = checkTensor(tensor, names);
    out.string(tensor.name);
    out.uint32(tensor.shape.length);
    for (const dim of tensor.shape.toReversed()) out.uint64(dim);
    out.uint32(GGUF_TENSOR_TYPES[tensor.type].code);
    out.uint64(at);
    relative.push({ name: tensor.name, offset: at, byteLength });
    at = align(at + byteLength);
  }
  const dataStart = align(out.length);
  out.grow(dataStart - out.length);
  return new TensorFileWriter(
    filePath,
    out.bytes,
    relative.map((p) => ({ ...p, offset: dataStart + p.offset })),
    dataStart + at,
  );
}
