/**
 * Writes one file of tensors whose layout is known before the first byte: what safetensors and GGUF have in common.
 *
 * The caller lays the file out (a prelude, then the place of each tensor) and delivers the bytes in the order it declared
 * the tensors, in pieces of any size; nothing is kept in memory. Delivering too much, too little or another tensor than
 * the next is our own bug and an error of kind `internal`. The file appears under its name at `commit()` or never (util/files.ts).
 */
import { MoeError } from "../util/errors.ts";
import { AtomicFile } from "../util/files.ts";

/** Where a declared tensor goes: `offset` counts from the start of the file. */
export interface Placement {
  readonly name: string;
  readonly offset: number;
  readonly byteLength: number;
}

/** What every writer of tensors offers. Leaving its `using` block before `commit()` removes what was written. */
export interface TensorWriter extends Disposable {
  /** The next bytes of the tensor `name`; tensors come in the order in which they were declared. */
  write(name: string, bytes: Uint8Array): void;
  /** Makes the result visible under its name, after flushing it to the disk. */
  commit(): void;
  /** Removes what was written. */
  abort(): void;
}

/** A file under construction, filled tensor by tensor. */
export class TensorFileWriter implements TensorWriter {
  readonly #file: AtomicFile;
  readonly #placements: readonly Placement[];
  #index = 0;
  #done = 0;

  /** `totalBytes` is the size of the finished file; bytes that no tensor covers are zero. */
  constructor(filePath: string, prelude: Uint8Array, placements: readonly Placement[], totalBytes: number) {
    this.#file = new AtomicFile(filePath);
    this.#placements = placements;
    try {
      this.#file.write(prelude, 0);
      // The last byte, which may be padding that nobody writes, gives the file its size.
      if (totalBytes > prelude.byteLength) this.#file.write(new Uint8Array(1), totalBytes - 1);
    } catch (error) {
      this.#file.abort();
      throw error;
    }
    this.#skipComplete();
  }

  /** The name of the file when it is finished. */
  get path(): string {
    return this.#file.path;
  }

  /** Whether every declared tensor has all its bytes. */
  get complete(): boolean {
    return this.#index === this.#placements.length;
  }

  #skipComplete(): void {
    for (; this.#done === this.#placements[this.#index]?.byteLength; this.#index++) this.#done = 0;
  }

  write(name: string, bytes: Uint8Array): void {
    // Empty tensors are passed over by themselves, and a caller that delivers their no bytes is right too.
    if (bytes.byteLength === 0) return;
    const place = this.#placements[this.#index];
    if (place?.name !== name) {
      throw new MoeError(
        "internal",
        `${this.path}: expected ${place === undefined ? "no more tensors" : `bytes of tensor ${JSON.stringify(place.name)}`}, got ${JSON.stringify(name)}`,
      );
    }
    if (this.#done + bytes.byteLength > place.byteLength) {
      throw new MoeError(
        "internal",
        `${this.path}: expected ${place.byteLength} bytes for tensor ${JSON.stringify(name)}, got ${this.#done + bytes.byteLength} or more`,
      );
    }
    this.#file.write(bytes, place.offset + this.#done);
    this.#done += bytes.byteLength;
    this.#skipComplete();
  }

  /** Flushes the finished file and keeps it under its temporary name until `commit()`. */
  seal(): void {
    const place = this.#placements[this.#index];
    if (place !== undefined) {
      throw new MoeError(
        "internal",
        `${this.path}: expected ${place.byteLength} bytes for tensor ${JSON.stringify(place.name)} before the file is finished, got ${this.#done}`,
      );
    }
    this.#file.seal();
  }

  commit(): void {
    this.seal();
    this.#file.commit();
  }

  abort(): void {
    this.#file.abort();
  }

  [Symbol.dispose](): void {
    this.#file.abort();
  }
}
