/**
 * Walks through the first part of a GGUF file, value by value, over a window of the file: the part before the tensors can be
 * tens of megabytes (a vocabulary) in a file of hundreds of gigabytes, and where it ends is known only after reading it.
 *
 * Nothing is allocated on the word of the file: a length or a count has to fit into the bytes that are left. Every failure is
 * a MoeError of kind `file` with the position. Values: gguf-types.ts.
 */
import { fileError } from "../util/errors.ts";
import { readFully } from "../util/files.ts";
import { decodeUtf8 } from "./json-cursor.ts";
import { GGUF_VALUE_TYPES, VALUE_BYTES } from "./gguf-types.ts";
import type { GgufArray, GgufValue, GgufValueType } from "./gguf-types.ts";

const WINDOW_BYTES = 1 << 18;
/** Levels of arrays in arrays; the specification has no limit, files have one level. */
const MAX_DEPTH = 4;

/** A position in a file and what comes next. `what` in each method names the thing for errors. */
export class GgufCursor {
  readonly #fd: number;
  readonly #size: number;
  readonly #path: string;
  #window = new Uint8Array(0);
  #view = new DataView(new ArrayBuffer(0));
  #windowStart = 0;
  #position = 0;

  constructor(fd: number, size: number, filePath: string) {
    this.#fd = fd;
    this.#size = size;
    this.#path = filePath;
  }

  /** Bytes from the start of the file. */
  get position(): number {
    return this.#position;
  }

  /** Makes the next `bytes` bytes present in the window, moves over them and gives their index in it. */
  #take(bytes: number, what: string): number {
    const left = this.#size - this.#position;
    if (bytes > left)
      throw fileError(
        this.#path,
        `${what} (${bytes} bytes) at byte ${this.#position}`,
        `the end of the file after ${left} bytes (truncated?)`,
      );
    let index = this.#position - this.#windowStart;
    if (index + bytes > this.#window.byteLength) {
      const length = Math.min(left, Math.max(bytes, WINDOW_BYTES));
      if (this.#window.byteLength !== length) this.#window = new Uint8Array(length);
      readFully(this.#fd, this.#window, this.#position, this.#path);
      this.#view = new DataView(this.#window.buffer);
      this.#windowStart = this.#position;
      index = 0;
    }
    this.#position += bytes;
    return index;
  }

  uint32(what: string): number {
    // Taking may replace the view, so it has to come first.
    const index = this.#take(4, what);
    return this.#view.getUint32(index, true);
  }

  /** A u64 that a double holds exactly. */
  safeInteger(what: string): number {
    const index = this.#take(8, what);
    const value = this.#view.getBigUint64(index, true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER))
      throw fileError(this.#path, `${what} at byte ${this.#position - 8} to be at most ${Number.MAX_SAFE_INTEGER}`, `${value}`);
    return Number(value);
  }

  /** A u64 count of things that take at least `leastBytes` each in what is left of the file. */
  count(what: string, leastBytes: number): number {
    const value = this.safeInteger(what);
    const left = this.#size - this.#position;
    if (value > left / leastBytes) {
      throw fileError(
        this.#path,
        `${what} at byte ${this.#position - 8} to fit into the ${left} bytes that follow`,
        `${value} (of at least ${leastBytes} bytes each)`,
      );
    }
    return value;
  }

  /** A length and that many bytes of UTF-8. */
  string(what: string, maxBytes = Number.MAX_SAFE_INTEGER): string {
    const length = this.count(`the length of ${what}`, 1);
    if (length > maxBytes) throw fileError(this.#path, `${what} of at most ${maxBytes} bytes`, `${length} bytes`);
    const index = this.#take(length, what);
    return decodeUtf8(this.#window.subarray(index, index + length), this.#path, what);
  }

  #type(what: string): GgufValueType {
    const code = this.uint32(`the type of ${what}`);
    const type = GGUF_VALUE_TYPES[code];
    if (type === undefined)
      throw fileError(
        this.#path,
        `a value type from 0 to ${GGUF_VALUE_TYPES.length - 1} for ${what} at byte ${this.#position - 4}`,
        `${code}`,
      );
    return type;
  }

  #bool(what: string): boolean {
    const index = this.#take(1, what);
    const byte = this.#view.getUint8(index);
    if (byte > 1) throw fileError(this.#path, `a bool of 0 or 1 for ${what} at byte ${this.#position - 1}`, `${byte}`);
    return byte === 1;
  }

  /** A type and a value of it. */
  value(what: string): GgufValue {
    const type = this.#type(what);
    if (type === "array") return this.#array(what, 1);
    if (type === "string") return { type, value: this.string(what) };
    if (type === "bool") return { type, value: this.#bool(what) };
    const index = this.#take(VALUE_BYTES[type], what);
    const view = this.#view;
    switch (type) {
      case "uint8":
        return { type, value: view.getUint8(index) };
      case "int8":
        return { type, value: view.getInt8(index) };
      case "uint16":
        return { type, value: view.getUint16(index, true) };
      case "int16":
        return { type, value: view.getInt16(index, true) };
      case "uint32":
        return { type, value: view.getUint32(index, true) };
      case "int32":
        return { type, value: view.getInt32(index, true) };
      case "float32":
        return { type, value: view.getFloat32(index, true) };
      case "float64":
        return { type, value: view.getFloat64(index, true) };
      case "uint64":
        return { type, value: view.getBigUint64(index, true) };
      case "int64":
        return { type, value: view.getBigInt64(index, true) };
      default:
        return type satisfies never;
    }
  }

  #array(what: string, depth: number): GgufArray {
    const elementType = this.#type(`the elements of ${what}`);
    const count = this.count(`the length of ${what}`, VALUE_BYTES[elementType]);
    const type = "array";
    if (elementType === "array") {
      if (depth === MAX_DEPTH) throw fileError(this.#path, `at most ${MAX_DEPTH} levels of arrays for ${what}`, "more");
      const values: GgufArray[] = [];
      for (let i = 0; i < count; i++) values.push(this.#array(what, depth + 1));
      return { type, elementType, values };
    }
    if (elementType === "string") {
      const values: string[] = [];
      const element = `an element of ${what}`;
      for (let i = 0; i < count; i++) values.push(this.string(element));
      return { type, elementType, values };
    }
    if (elementType === "bool") {
      const values: boolean[] = [];
      for (let i = 0; i < count; i++) values.push(this.#bool(what));
      return { type, elementType, values };
    }
    const bytes = count * VALUE_BYTES[elementType];
    const index = this.#take(bytes, what);
    const buffer = this.#window.slice(index, index + bytes).buffer;
    switch (elementType) {
      case "uint8":
        return { type, elementType, values: new Uint8Array(buffer) };
      case "int8":
        return { type, elementType, values: new Int8Array(buffer) };
      case "uint16":
        return { type, elementType, values: new Uint16Array(buffer) };
      case "int16":
        return { type, elementType, values: new Int16Array(buffer) };
      case "uint32":
        return { type, elementType, values: new Uint32Array(buffer) };
      case "int32":
        return { type, elementType, values: new Int32Array(buffer) };
      case "float32":
        return { type, elementType, values: new Float32Array(buffer) };
      case "float64":
        return { type, elementType, values: new Float64Array(buffer) };
      case "uint64":
        return { type, elementType, values: new BigUint64Array(buffer) };
      case "int64":
        return { type, elementType, values: new BigInt64Array(buffer) };
      default:
        return elementType satisfies never;
    }
  }
}
