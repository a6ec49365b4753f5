/**
 * The token file: a corpus tokenized once, read at random afterwards. Layout, little endian:
 *   4096 bytes  JSON header, padded with spaces
 *   tokens      u16 or u32 each (u16 where the vocabulary fits)
 *   mask        one byte a token, 1 where the token bears loss (only with `hasMask`)
 *   padding     to a multiple of 8
 *   index       numDocuments + 1 f64 offsets: first token of each document, then numTokens
 * Written under a temporary name and renamed when whole, so a killed writer leaves nothing that opens.
 *
 * Read through a file mapping where the caller has one to give (`map`; the native engine does), otherwise by position.
 * Measured, 200 MB in the page cache: a window of 2048 tokens takes 1 us from the mapping and 3 to 4 us by position, either
 * of them nothing beside a step. What decides is the index: mapped, that of a hundred million documents costs no heap.
 */
import { closeSync, existsSync } from "node:fs";
import { endianness } from "node:os";
import { fileError, MoeError } from "../util/errors.ts";
import { AtomicFile, openForReading, readFully } from "../util/files.ts";

const headerBytes = 4096;
const magic = "moe.ts tokens 2";
/** Bytes that the writer collects before it writes. */
const blockBytes = 1 << 20;

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

/** Streams documents into a token file. Call `finish`; leaving a `using` block without it leaves nothing behind. */
export class TokenFileWriter implements Disposable {
  readonly #file: AtomicFile;
  readonly #bytesPerToken: 2 | 4;
  readonly #vocabSize: number;
  /** One mask a document, or null where every token bears loss; counted in bytes only once a document has one. */
  readonly #masks: (Uint8Array | null)[] = [];
  readonly #offsets: number[] = [0];
  #block = new Uint8Array(blockBytes);
  #filled = 0;
  #position = headerBytes;

  /** Throws `file` or `resource` where nothing can be written. The folder has to exist. */
  constructor(path: string, { vocabSize }: { vocabSize: number }) {
    this.#file = new AtomicFile(path);
    this.#bytesPerToken = vocabSize <= 65_536 ? 2 : 4;
    this.#vocabSize = vocabSize;
  }

  get numTokens(): number {
    return this.#offsets.at(-1) ?? 0;
  }

  /** Appends a document; an empty one is left out. `mask` (1: bears loss) has one entry a token; without it all do. */
  append(tokens: ArrayLike<number>, mask: Uint8Array | null = null): void {
    if (tokens.length === 0) return;
    if (mask !== null && mask.length !== tokens.length) {
      throw new MoeError("internal", `token file: a mask of ${mask.length} for ${tokens.length} tokens`);
    }
    const encoded = this.#bytesPerToken === 2 ? Uint16Array.from(tokens) : Uint32Array.from(tokens);
    this.#write(new Uint8Array(encoded.buffer));
    this.#masks.push(mask);
    this.#offsets.push(this.numTokens + tokens.length);
  }

  /** Writes mask, index and header, and gives the file its name. */
  finish(fingerprint: string): TokenFileHeader {
    const hasMask = this.#masks.some((mask) => mask !== null);
    if (hasMask) {
      for (const [document, mask] of this.#masks.entries()) {
        this.#write(mask ?? new Uint8Array((this.#offsets[document + 1] ?? 0) - (this.#offsets[document] ?? 0)).fill(1));
      }
    }
    const { numTokens } = this;
    const header: TokenFileHeader = {
      magic,
      numTokens,
      numDocuments: this.#offsets.length - 1,
      bytesPerToken: this.#bytesPerToken,
      hasMask,
      vocabSize: this.#vocabSize,
      fingerprint,
    };
    this.#write(new Uint8Array(layoutOf(header).indexAt - this.#position - this.#filled));
    this.#write(new Uint8Array(Float64Array.from(this.#offsets).buffer));
    this.#flush();
    this.#file.write(new TextEncoder().encode(JSON.stringify(header).padEnd(headerBytes)), 0);
    this.#file.commit();
    return header;
  }
  [Symbol.dispose](): void {
    this.#file.abort();
  }

  #write(bytes: Uint8Array): void {
    if (this.#filled + bytes.length > blockBytes) this.#flush();
    if (bytes.length > blockBytes) {
      this.#file.write(bytes, this.#position);
      this.#position += bytes.length;
      return;
    }
    this.#block.set(bytes, this.#filled);
    this.#filled += bytes.length;
  }
  #flush(): void {
    this.#file.write(this.#block.subarray(0, this.#filled), this.#position);
    this.#position += this.#filled;
    this.#filled = 0;
  }
}

/** Where the parts of a token file begin, in bytes, and where it ends. */
function layoutOf({ numTokens, numDocuments, bytesPerToken, hasMask }: TokenFileHeader): { maskAt: number; indexAt: number; end: number } {
  const maskAt = headerBytes + numTokens * bytesPerToken;
  const indexAt = Math.ceil((maskAt + (hasMask ? numTokens : 0)) / 8) * 8;
  return { maskAt, indexAt, end: indexAt + 8 * (numDocuments + 1) };
}

/** The bytes of a file in memory, until `close`. */
export interface MappedBytes {
  readonly bytes: Uint8Array;
  close(): void;
}
/** Maps a whole file, or returns null where that is not possible: it is read by position then. */
export type FileMapper = (path: string) => MappedBytes | null;

/** Bytes of the file at a position, copied into `target`. */
type Reader = (target: Uint8Array, position: number) => void;

/** Random access to a token file. */
export class TokenFile implements Disposable {
  readonly path: string;
  readonly header: TokenFileHeader;
  /** First token of each document, then the number of tokens. Not to be used after disposal. */
  readonly documentOffsets: Float64Array;
  readonly #read: Reader;
  readonly #maskAt: number;
  readonly #close: () => void;

  /** Throws `file` for a file that is missing, truncated, or something else. */
  constructor(path: string, { map }: { readonly map?: FileMapper | undefined } = {}) {
    if (endianness() !== "LE") throw new MoeError("unsupported", "token files on a big-endian machine");
    if (!existsSync(path)) throw fileError(path, "a token file", "no such file");
    this.path = path;
    const { fd, size } = openForReading(path);
    let mapped: MappedBytes | null = null;
    try {
      this.header = readHeader(fd, size, path);
      const { maskAt, indexAt, end } = layoutOf(this.header);
      if (size !== end) throw fileError(path, `a token file of ${end} bytes`, `${size} bytes`);
      mapped = map?.(path) ?? null;
      this.#maskAt = maskAt;
      const bytes = mapped?.bytes;
      this.#read =
        bytes === undefined
          ? (target, at) => readFully(fd, target, at, path)
          : (target, at) => target.set(bytes.subarray(at, at + target.length));
      this.documentOffsets = this.#readIndex(indexAt, bytes);
    } catch (error) {
      mapped?.close();
      closeSync(fd);
      throw error;
    }
    this.#close = (): void => {
      mapped?.close();
      closeSync(fd);
    };
  }

  /** Tokens start..start+out.length-1 into `out`. Throws `internal` outside the file. */
  readTokens(start: number, out: Int32Array): void {
    const { numTokens, bytesPerToken } = this.header;
    if (start < 0 || start + out.length > numTokens)
      throw new MoeError("internal", `tokens ${start}..${start + out.length} of ${numTokens}`);
    const encoded = bytesPerToken === 2 ? new Uint16Array(out.length) : new Uint32Array(out.length);
    this.#read(new Uint8Array(encoded.buffer), headerBytes + start * bytesPerToken);
    out.set(encoded);
  }
  /** Loss mask of tokens start..start+out.length-1; all ones in a file without a mask. */
  readMask(start: number, out: Uint8Array): void {
    if (this.header.hasMask) this.#read(out, this.#maskAt + start);
    else out.fill(1);
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

  /** The index, checked: what it says is used as positions of the file. */
  #readIndex(indexAt: number, mapped: Uint8Array | undefined): Float64Array {
    const { numDocuments, numTokens } = this.header;
    const isAligned = mapped !== undefined && (mapped.byteOffset + indexAt) % 8 === 0;
    const offsets = isAligned
      ? new Float64Array(mapped.buffer, mapped.byteOffset + indexAt, numDocuments + 1)
      : new Float64Array(numDocuments + 1);
    if (!isAligned) this.#read(new Uint8Array(offsets.buffer), indexAt);
    const ascends = offsets.every((offset, i) => Number.isSafeInteger(offset) && (i === 0 ? offset === 0 : offset > (offsets[i - 1] ?? 0)));
    if (!ascends || offsets[numDocuments] !== numTokens)
      throw fileError(this.path, `document offsets that ascend from 0 to ${numTokens}`, "others");
    return offsets;
  }
  [Symbol.dispose](): void {
    this.#close();
  }
}

function readHeader(fd: number, size: number, path: string): TokenFileHeader {
  const bytes = new Uint8Array(headerBytes);
  let header: Partial<TokenFileHeader>;
  try {
    readFully(fd, bytes, 0, path);
    header = JSON.parse(new TextDecoder().decode(bytes)) as Partial<TokenFileHeader>;
  } catch (error) {
    throw fileError(path, "a token file", "a header that does not parse", error);
  }
  const counts = [header.numTokens, header.numDocuments, header.vocabSize];
  const valid =
    header.magic === magic && counts.every((n) => Number.isSafeInteger(n) && Number(n) >= 0 && Number(n) <= Math.max(size, 2 ** 31));
  if (!valid || (header.bytesPerToken !== 2 && header.bytesPerToken !== 4) || typeof header.hasMask !== "boolean") {
    throw fileError(path, `the header of "${magic}"`, JSON.stringify(header).slice(0, 200));
  }
  return header as TokenFileHeader;
}
