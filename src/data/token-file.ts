/**
 * The token file: a corpus tokenized once, read at random afterwards. Layout, little endian:
 *   4096 bytes  JSON header, padded with spaces
 *   tokens      u16 or u32 each (u16 where the vocabulary fits)
 *   mask        one byte a token, 1 where the token bears loss (only with `hasMask`)
 *   index       numDocuments + 1 f64 offsets: first token of each document, then numTokens
 * Written under a temporary name and renamed when whole, so a killed writer leaves nothing that opens.
 */
import { closeSync, existsSync, fsyncSync, fstatSync, openSync, readSync, renameSync, rmSync, writeSync } from "node:fs";
import { endianness } from "node:os";
import { fileError, MoeError } from "../util/errors.ts";

const headerBytes = 4096;
const magic = "moe.ts tokens 1";

export interface TokenFileHeader {
  readonly magic: typeof magic;
  readonly numTokens: number;
  readonly numDocuments: number;
  readonly bytesPerToken: 2 | 4;
  readonly hasMask: boolean;
  readonly vocabSize: number;
  /** Hash over the sources and the tokenizer: tells whether the file is current. */
  readonly fingerprint: string;
}

/** Streams documents into a token file. Call `finish`, or `abort` to leave nothing behind. */
export class TokenFileWriter {
  readonly #path: string;
  readonly #temporary: string;
  readonly #fd: number;
  readonly #bytesPerToken: 2 | 4;
  readonly #hasMask: boolean;
  readonly #vocabSize: number;
  #numTokens = 0;
  #offsets: number[] = [0];
  #masks: Uint8Array[] = [];

  constructor(path: string, { vocabSize, hasMask }: { vocabSize: number; hasMask: boolean }) {
    this.#path = path;
    this.#temporary = `${path}.${process.pid}.tmp`;
    this.#fd = openSync(this.#temporary, "w");
    this.#bytesPerToken = vocabSize <= 65_536 ? 2 : 4;
    this.#hasMask = hasMask;
    this.#vocabSize = vocabSize;
    this.#write(Buffer.alloc(headerBytes, " "));
  }

  /** Appends a document. `mask` (1: bears loss) has one entry a token; required with `hasMask`. */
  append(tokens: ArrayLike<number>, mask?: Uint8Array): void {
    if (tokens.length === 0) return;
    const encoded = this.#bytesPerToken === 2 ? Uint16Array.from(tokens) : Uint32Array.from(tokens);
    this.#write(new Uint8Array(encoded.buffer));
    if (this.#hasMask) {
      if (mask?.length !== tokens.length) throw new MoeError("internal", `token file: a mask of ${mask?.length} for ${tokens.length} tokens`);
      this.#masks.push(mask);
    }
    this.#numTokens += tokens.length;
    this.#offsets.push(this.#numTokens);
  }

  /** Writes mask, index and header, and gives the file its name. */
  finish(fingerprint: string): TokenFileHeader {
    for (const mask of this.#masks) this.#write(mask);
    this.#write(new Uint8Array(Float64Array.from(this.#offsets).buffer));
    const header: TokenFileHeader = {
      magic,
      numTokens: this.#numTokens,
      numDocuments: this.#offsets.length - 1,
      bytesPerToken: this.#bytesPerToken,
      hasMask: this.#hasMask,
      vocabSize: this.#vocabSize,
      fingerprint,
    };
    writeSync(this.#fd, Buffer.from(JSON.stringify(header).padEnd(headerBytes)), 0, headerBytes, 0);
    fsyncSync(this.#fd);
    closeSync(this.#fd);
    renameSync(this.#temporary, this.#path);
    return header;
  }
  abort(): void {
    closeSync(this.#fd);
    rmSync(this.#temporary, { force: true });
  }
  #write(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) done += writeSync(this.#fd, bytes, done);
  }
}

/** Random access to a token file: header and document index in memory, tokens read by position from the page cache. */
export class TokenFile implements Disposable {
  readonly path: string;
  readonly header: TokenFileHeader;
  /** First token of each document, then the number of tokens. */
  readonly documentOffsets: Float64Array;
  readonly #fd: number;

  constructor(path: string) {
    if (endianness() !== "LE") throw new MoeError("unsupported", "token files on a big-endian machine");
    if (!existsSync(path)) throw fileError(path, "a token file", "no such file");
    this.path = path;
    this.#fd = openSync(path, "r");
    try {
      this.header = this.#readHeader();
      const { numTokens, numDocuments, bytesPerToken, hasMask } = this.header;
      const indexAt = headerBytes + numTokens * (bytesPerToken + (hasMask ? 1 : 0));
      const expected = indexAt + 8 * (numDocuments + 1);
      const { size } = fstatSync(this.#fd);
      if (size !== expected) throw fileError(path, `a token file of ${expected} bytes`, `${size} bytes`);
      this.documentOffsets = new Float64Array(numDocuments + 1);
      this.#read(this.documentOffsets, indexAt);
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
  }

  /** Tokens start..start+out.length-1 into `out`. Throws `internal` outside the file. */
  readTokens(start: number, out: Int32Array): void {
    const { numTokens, bytesPerToken } = this.header;
    if (start < 0 || start + out.length > numTokens) throw new MoeError("internal", `tokens ${start}..${start + out.length} of ${numTokens}`);
    const encoded = bytesPerToken === 2 ? new Uint16Array(out.length) : new Uint32Array(out.length);
    this.#read(encoded, headerBytes + start * bytesPerToken);
    out.set(encoded);
  }
  /** Loss mask of tokens start..start+out.length-1; all ones in a file without a mask. */
  readMask(start: number, out: Uint8Array): void {
    if (!this.header.hasMask) out.fill(1);
    else this.#read(out, headerBytes + this.header.numTokens * this.header.bytesPerToken + start);
  }
  /** Index of the document that holds token `position`. */
  documentAt(position: number): number {
    let low = 0;
    let high = this.header.numDocuments - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.documentOffsets[middle] ?? 0) <= position) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #readHeader(): TokenFileHeader {
    const bytes = new Uint8Array(headerBytes);
    let header: Partial<TokenFileHeader>;
    try {
      this.#read(bytes, 0);
      header = JSON.parse(new TextDecoder().decode(bytes)) as Partial<TokenFileHeader>;
    } catch (error) {
      throw fileError(this.path, "a token file", "a header that does not parse", error);
    }
    const counts = [header.numTokens, header.numDocuments, header.vocabSize];
    const valid = header.magic === magic && counts.every((n) => Number.isSafeInteger(n) && Number(n) >= 0);
    if (!valid || (header.bytesPerToken !== 2 && header.bytesPerToken !== 4)) throw fileError(this.path, `the header of "${magic}"`, JSON.stringify(header));
    return header as TokenFileHeader;
  }
  #read(target: Uint8Array | Uint16Array | Uint32Array | Float64Array, position: number): void {
    const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
    for (let done = 0; done < bytes.length; ) {
      const count = readSync(this.#fd, bytes, done, bytes.length - done, position + done);
      if (count === 0) throw fileError(this.path, `${bytes.length} bytes at ${position}`, `the end after ${done}`);
      done += count;
    }
  }
  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}
