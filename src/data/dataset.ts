/**
 * Fixed-length training sequences over a token file. The corpus is one stream of documents cut into windows of
 * `sequenceLength` tokens; a window may hold several documents, and the batch says for every token where its document
 * begins, so that attention never crosses a border. Targets are the next token of the same document, or -1.
 *
 * Order is a function of (seed, epoch), position of a count of sequences: resuming needs one number.
 */
import { MoeError } from "../util/errors.ts";
import { Random } from "../util/random.ts";
import type { TokenFile } from "./token-file.ts";

/** A flat batch of B sequences of S tokens, T = B * S. All arrays have T entries. */
export interface TokenBatch {
  readonly numSequences: number;
  readonly sequenceLength: number;
  readonly ids: Int32Array;
  /** Next token, or -1 where the token bears no loss (end of a document, masked). */
  readonly targets: Int32Array;
  /** Position within the document. */
  readonly positions: Int32Array;
  /** First row of the batch that the token may attend to. */
  readonly keyBase: Int32Array;
  /** One past the last row that the token may attend to (itself). */
  readonly keyEnd: Int32Array;
  /** Number of targets that are not -1. */
  readonly numTargets: number;
}

export interface DatasetOptions {
  readonly sequenceLength: number;
  readonly seed: number;
  /** False: every window is one document for attention and targets (the GPT-2 way). Default true. */
  readonly documentMask?: boolean;
  /** False: windows in corpus order (validation). Default true. */
  readonly shuffle?: boolean;
  /** What the corpus is called in errors. Default: the path of the token file. */
  readonly label?: string;
}

export class Dataset {
  readonly file: TokenFile;
  readonly sequenceLength: number;
  /** Windows in one epoch. */
  readonly numSequences: number;
  readonly #options: Required<Omit<DatasetOptions, "label">>;
  #order: { epoch: number; indices: Uint32Array } | null = null;

  /** Throws `file` when the corpus is shorter than one sequence and its target. */
  constructor(file: TokenFile, options: DatasetOptions) {
    this.file = file;
    this.#options = { documentMask: true, shuffle: true, ...options };
    this.sequenceLength = options.sequenceLength;
    this.numSequences = Math.floor((file.header.numTokens - 1) / options.sequenceLength);
    if (this.numSequences < 1) {
      throw new MoeError(
        "file",
        `${options.label ?? file.path}: expected at least ${options.sequenceLength + 1} tokens (one sequence and its last target), got ${file.header.numTokens}`,
      );
    }
  }

  /** Sequences number first..first+count-1 of the endless order, as one batch. */
  batch(first: number, count: number): TokenBatch {
    const S = this.sequenceLength;
    const T = count * S;
    const ids = new Int32Array(T);
    const targets = new Int32Array(T);
    const positions = new Int32Array(T);
    const keyBase = new Int32Array(T);
    const keyEnd = new Int32Array(T);
    let numTargets = 0;
    for (let b = 0; b < count; b++) {
      const at = b * S;
      const part = (array: Int32Array): Int32Array => array.subarray(at, at + S);
      numTargets += this.#fill(this.#window(first + b), at, {
        ids: part(ids),
        targets: part(targets),
        positions: part(positions),
        keyBase: part(keyBase),
        keyEnd: part(keyEnd),
      });
    }
    return { numSequences: count, sequenceLength: S, ids, targets, positions, keyBase, keyEnd, numTargets };
  }

  #window(sequence: number): number {
    const epoch = Math.floor(sequence / this.numSequences);
    const index = sequence % this.numSequences;
    if (!this.#options.shuffle) return index;
    if (this.#order?.epoch !== epoch) {
      const indices = Uint32Array.from({ length: this.numSequences }, (_, i) => i);
      this.#order = { epoch, indices: Random.keyed(this.#options.seed, epoch).shuffle(indices) };
    }
    return this.#order.indices[index] ?? 0;
  }

  #fill(window: number, row: number, out: Pick<TokenBatch, "ids" | "targets" | "positions" | "keyBase" | "keyEnd">): number {
    const S = this.sequenceLength;
    const start = window * S;
    const tokens = new Int32Array(S + 1);
    this.file.readTokens(start, tokens);
    const mask = new Uint8Array(S + 1);
    this.file.readMask(start, mask);
    const { documentOffsets } = this.file;
    let document = this.file.documentAt(start);
    let documentStart = 0;
    let numTargets = 0;
    for (let t = 0; t < S; t++) {
      if (this.#options.documentMask && t > 0 && start + t >= (documentOffsets[document + 1] ?? 0)) {
        document++;
        documentStart = t;
      }
      const lastOfDocument = this.#options.documentMask && start + t + 1 >= (documentOffsets[document + 1] ?? 0);
      const bearsLoss = !lastOfDocument && mask[t + 1] === 1;
      out.ids[t] = tokens[t] ?? 0;
      out.targets[t] = bearsLoss ? (tokens[t + 1] ?? 0) : -1;
      out.positions[t] = t - documentStart;
      out.keyBase[t] = row + documentStart;
      out.keyEnd[t] = row + t + 1;
      if (bearsLoss) numTargets++;
    }
    return numTargets;
  }
}
