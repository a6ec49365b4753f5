/**
 * Follows a file that grows by lines (`metrics.jsonl` of a run under way): each reading gives the whole lines that came since the last one,
 * with where they are in the file. A line without its end is left for the next time. A file that was replaced or cut (a resumed run drops
 * records that it makes again) is begun anew, which the reading says.
 */
import * as fs from "node:fs";
import { promisify } from "node:util";
import { openInside } from "./inside.ts";

export interface Line {
  readonly text: string;
  /** Bytes from the beginning of the file. */
  readonly offset: number;
  readonly length: number;
}
export interface Reading {
  readonly lines: readonly Line[];
  /** Lines longer than `maxLineBytes`, passed over. */
  readonly numTooLong: number;
  /** The file is another one than before: forget what came from it. */
  readonly restarted: boolean;
  /** There is more to read at once. */
  readonly more: boolean;
}

export interface LineTailOptions {
  /** Longer lines are passed over. */
  readonly maxLineBytes?: number;
}

const newline = 10;

export class LineTail {
  readonly #folder: string;
  readonly #name: string;
  readonly #maxLineBytes: number;
  #inode: number | null = null;
  /** Bytes that were read, whole lines or not. */
  #offset = 0;
  #size = 0;
  /** The beginning of a line whose end has not come yet, in pieces; null while one that is too long goes by. */
  #pieces: Buffer[] | null = [];
  #lineStart = 0;

  constructor(folder: string, name: string, { maxLineBytes = 64 << 20 }: LineTailOptions = {}) {
    this.#folder = folder;
    this.#name = name;
    this.#maxLineBytes = maxLineBytes;
  }

  get bytesRead(): number {
    return this.#offset;
  }
  /** Of the file when it was last looked at. */
  get size(): number {
    return this.#size;
  }

  /**
   * Has the operating system read the next `maxBytes` from the disk without holding this thread up, so that `read` finds them in memory: of a
   * file of gigabytes, a piece that is not there yet can take a slow disk seconds.
   */
  async warm(maxBytes: number): Promise<void> {
    const opened = openInside(this.#folder, this.#name);
    if (opened === null) return;
    const length = Math.min(maxBytes, opened.stat.size - this.#offset);
    try {
      if (length > 0) await promisify(fs.read)(opened.fd, Buffer.allocUnsafe(length), 0, length, this.#offset);
    } catch {
      // `read` will say so.
    } finally {
      fs.closeSync(opened.fd);
    }
  }

  /** Reads at most about `maxBytes`. */
  read(maxBytes: number): Reading {
    const nothing = { lines: [], numTooLong: 0, restarted: false, more: false };
    const opened = openInside(this.#folder, this.#name);
    if (opened === null) {
      if (this.#inode === null) return nothing;
      this.#restart(null);
      return { ...nothing, restarted: true };
    }
    try {
      const { fd, stat } = opened;
      const restarted = this.#inode !== null && (this.#inode !== stat.ino || stat.size < this.#offset);
      if (restarted || this.#inode === null) this.#restart(stat.ino);
      this.#size = stat.size;
      const bytes = Buffer.allocUnsafe(Math.max(0, Math.min(maxBytes, stat.size - this.#offset)));
      const count = fs.readSync(fd, bytes, 0, bytes.length, this.#offset);
      const { lines, numTooLong } = this.#split(bytes.subarray(0, count));
      return { lines, numTooLong, restarted, more: count > 0 && this.#offset < stat.size };
    } finally {
      fs.closeSync(opened.fd);
    }
  }

  /** The text of a line that an earlier reading gave; null where the file is another one by now. */
  reread({ offset, length }: Pick<Line, "offset" | "length">): string | null {
    const opened = openInside(this.#folder, this.#name);
    if (opened === null) return null;
    try {
      if (opened.stat.ino !== this.#inode || opened.stat.size < offset + length) return null;
      const bytes = Buffer.allocUnsafe(length);
      const count = fs.readSync(opened.fd, bytes, 0, length, offset);
      return bytes.toString("utf8", 0, count);
    } finally {
      fs.closeSync(opened.fd);
    }
  }

  #restart(inode: number | null): void {
    this.#inode = inode;
    this.#offset = this.#size = this.#lineStart = 0;
    this.#pieces = [];
  }

  #split(bytes: Buffer): { lines: Line[]; numTooLong: number } {
    const lines: Line[] = [];
    let numTooLong = 0;
    let from = 0;
    while (from < bytes.length) {
      const end = bytes.indexOf(newline, from);
      const piece = bytes.subarray(from, end < 0 ? bytes.length : end);
      const length = this.#offset + from + piece.length - this.#lineStart;
      if (length > this.#maxLineBytes) this.#pieces = null;
      // A piece is kept beyond this reading, so it must not keep the whole buffer.
      else this.#pieces?.push(end < 0 ? Buffer.from(piece) : piece);
      if (end < 0) break;
      if (this.#pieces === null) numTooLong++;
      else {
        const text = (this.#pieces.length === 1 ? piece : Buffer.concat(this.#pieces)).toString("utf8");
        lines.push({ text, offset: this.#lineStart, length });
      }
      this.#pieces = [];
      from = end + 1;
      this.#lineStart = this.#offset + from;
    }
    this.#offset += bytes.length;
    return { lines, numTooLong };
  }
}
