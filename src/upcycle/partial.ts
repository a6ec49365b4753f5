/**
 * An output folder under construction that survives its writer. Everything goes to `<out>.partial`: `plan.json` says what is being
 * made of what (a fingerprint), `progress.jsonl` gets the SHA-256 of each tensor when its bytes are written. Who comes back with the same
 * plan verifies the recorded tensors by their hashes and goes on after the last that is whole; another plan begins anew.
 * There is no `config.json` in the folder before its weights are whole and on the disk, so it never loads as half a model.
 *
 * Files are flushed to the disk when they are complete. A hash recorded for bytes that a power cut took is found out by verifying.
 */
import { createHash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import type { PlannedFile } from "../checkpoint/safetensors-writer.ts";
import { MoeError } from "../util/errors.ts";
import {
  openForReading,
  readFully,
  removeTemporaries,
  syncDirectory,
  systemError,
  writeFileAtomically,
  writeFully,
} from "../util/files.ts";
import { lockFolder, lockName } from "../util/lock.ts";

const planName = "plan.json";
const progressName = "progress.jsonl";
const chunkBytes = 4 << 20;

/** Small pieces are gathered up to so many bytes before they go to the file; large ones go at once. */
const writeBytes = 4 << 20;
const directBytes = 1 << 18;

interface Place {
  readonly file: PlannedFile;
  readonly name: string;
  readonly offset: number;
  readonly byteLength: number;
}

export class PartialFolder implements Disposable {
  readonly folder: string;
  readonly #out: string;
  readonly #places: readonly Place[];
  readonly #hashes: string[] = [];
  readonly #resumed: number;
  readonly #pending = new Uint8Array(writeBytes);
  #lock: Disposable | null = null;
  #progress: number | null = null;
  #open: { readonly file: PlannedFile; readonly fd: number } | null = null;

  /**
   * Takes `<out>.partial` over or begins it. `fingerprint` names everything that the output depends on. Throws `usage` where
   * something else is in the way, `resource` (also where another process is at it), `file`.
   */
  constructor(out: string, files: readonly PlannedFile[], fingerprint: string) {
    this.#out = out;
    this.folder = `${out}.partial`;
    this.#places = files.flatMap((file) => file.placements.map((place) => ({ file, ...place })));
    try {
      this.#lock = this.#claim();
      removeTemporaries(this.folder);
      this.#resumed = this.#takeOver(fingerprint) ? this.#verify() : this.#begin(fingerprint);
      fs.truncateSync(path.join(this.folder, progressName), this.#journalBytes());
      this.#progress = fs.openSync(path.join(this.folder, progressName), "a");
    } catch (error) {
      this[Symbol.dispose]();
      throw systemError(this.folder, "a folder to write to", error);
    }
  }

  /** Tensors that were there already, whole. */
  get numResumed(): number {
    return this.#resumed;
  }
  /** SHA-256 of every tensor written so far, in order. */
  get hashes(): readonly string[] {
    return this.#hashes;
  }

  #claim(): Disposable {
    fs.mkdirSync(this.folder, { recursive: true });
    const names = fs.readdirSync(this.folder);
    if (names.length > 0 && !names.includes(planName) && !names.every((name) => name === lockName || name.endsWith(".tmp"))) {
      throw new MoeError("usage", `upcycle: ${this.folder}: expected nothing, or what an upcycling left; move it away`);
    }
    return lockFolder(this.folder, "an unfinished output that no process is writing");
  }
  #takeOver(fingerprint: string): boolean {
    try {
      const plan = JSON.parse(fs.readFileSync(path.join(this.folder, planName), "utf8")) as { fingerprint?: unknown };
      return plan.fingerprint === fingerprint && fs.existsSync(path.join(this.folder, progressName));
    } catch {
      return false;
    }
  }
  #begin(fingerprint: string): 0 {
    // The plan is replaced, never gone: without one the folder would be somebody else's to whoever comes after a kill.
    for (const name of fs.readdirSync(this.folder)) {
      if (name !== lockName && name !== planName) fs.rmSync(path.join(this.folder, name), { recursive: true, force: true });
    }
    const tensors = this.#places.map(({ name, file, byteLength }) => ({ name, file: file.fileName, byteLength }));
    writeFileAtomically(path.join(this.folder, planName), `${JSON.stringify({ fingerprint, tensors })}\n`);
    fs.writeFileSync(path.join(this.folder, progressName), "");
    return 0;
  }

  /** Counts the recorded tensors whose bytes are there, and takes their hashes over. */
  #verify(): number {
    const lines = fs.readFileSync(path.join(this.folder, progressName), "utf8").split("\n").slice(0, -1);
    for (const [index, line] of lines.entries()) {
      const place = this.#places[index];
      const recorded = /^(\d+) ([0-9a-f]{64})$/.exec(line);
      if (place === undefined || recorded === null || Number(recorded[1]) !== index) break;
      if (this.#hashOf(place) !== recorded[2]) break;
      this.#hashes.push(recorded[2]);
    }
    return this.#hashes.length;
  }
  #hashOf({ file, offset, byteLength }: Place): string | null {
    const filePath = path.join(this.folder, file.fileName);
    if (!fs.existsSync(filePath) || fs.statSync(filePath).size !== file.totalBytes) return null;
    const { fd } = openForReading(filePath);
    try {
      const hash = createHash("sha256");
      const chunk = new Uint8Array(Math.min(chunkBytes, byteLength));
      for (let at = 0; at < byteLength; at += chunk.length) {
        const piece = chunk.subarray(0, Math.min(chunk.length, byteLength - at));
        readFully(fd, piece, offset + at, filePath);
        hash.update(piece);
      }
      return hash.digest("hex");
    } finally {
      fs.closeSync(fd);
    }
  }
  #journalBytes(): number {
    return this.#hashes.reduce((sum, hash, index) => sum + journalLine(index, hash).length, 0);
  }

  /** Writes the next tensor: `make` gives its bytes in order. `knownHash` spares hashing where equal bytes were hashed before. */
  write(name: string, make: (write: (bytes: Uint8Array) => void) => void, knownHash: string | null): string {
    const index = this.#hashes.length;
    const place = this.#places[index];
    if (place?.name !== name) throw new MoeError("internal", `${this.folder}: expected tensor ${place?.name ?? "(none)"}, got ${name}`);
    const fd = this.#openFile(place.file);
    const hash = knownHash === null ? createHash("sha256") : null;
    let [done, pending] = [0, 0];
    const filePath = path.join(this.folder, place.file.fileName);
    make((bytes) => {
      hash?.update(bytes);
      if (bytes.byteLength >= directBytes || pending + bytes.byteLength > writeBytes) {
        writeFully(fd, this.#pending.subarray(0, pending), place.offset + done, filePath);
        done += pending;
        pending = 0;
      }
      if (bytes.byteLength >= directBytes) {
        writeFully(fd, bytes, place.offset + done, filePath);
        done += bytes.byteLength;
      } else {
        this.#pending.set(bytes, pending);
        pending += bytes.byteLength;
      }
    });
    if (pending > 0) writeFully(fd, this.#pending.subarray(0, pending), place.offset + done, filePath);
    if (done + pending !== place.byteLength) {
      throw new MoeError("internal", `${filePath}: expected ${place.byteLength} bytes for ${name}, got ${done + pending}`);
    }
    const digest = knownHash ?? hash?.digest("hex") ?? "";
    this.#hashes.push(digest);
    if (this.#progress !== null) fs.writeSync(this.#progress, journalLine(index, digest));
    return digest;
  }
  #openFile(file: PlannedFile): number {
    if (this.#open?.file === file) return this.#open.fd;
    this.#seal();
    const filePath = path.join(this.folder, file.fileName);
    try {
      const fd = fs.openSync(filePath, fs.existsSync(filePath) ? "r+" : "w");
      this.#open = { file, fd };
      // Also in a file that was there: nobody verified its header.
      writeFully(fd, file.prelude, 0, filePath);
      if (fs.fstatSync(fd).size !== file.totalBytes) {
        // The last byte, which may be padding that nobody writes, gives the file its size.
        if (file.totalBytes > file.prelude.byteLength) writeFully(fd, new Uint8Array(1), file.totalBytes - 1, filePath);
      }
      return fd;
    } catch (error) {
      throw systemError(filePath, "a file that can be written", error);
    }
  }
  #seal(): void {
    if (this.#open === null) return;
    const { fd, file } = this.#open;
    this.#open = null;
    try {
      fs.fsyncSync(fd);
    } catch (error) {
      throw systemError(path.join(this.folder, file.fileName), "to flush the file to the disk", error);
    } finally {
      fs.closeSync(fd);
    }
  }

  /** All tensors are written and flushed. Files that were complete when this process came are flushed again: the one before may not have. */
  finishWeights(files: readonly PlannedFile[]): void {
    if (this.#hashes.length !== this.#places.length) {
      throw new MoeError("internal", `${this.folder}: ${this.#hashes.length} of ${this.#places.length} tensors written`);
    }
    // A file without tensors has a header too.
    for (const file of files) this.#openFile(file);
    this.#seal();
  }
  /** Gives the folder its name. Everything else that belongs in it is written by then. */
  publish(): void {
    try {
      if (this.#progress !== null) fs.closeSync(this.#progress);
      this.#progress = null;
      for (const name of [progressName, planName]) fs.rmSync(path.join(this.folder, name), { force: true });
      this.#lock?.[Symbol.dispose]();
      this.#lock = null;
      syncDirectory(this.folder);
      fs.renameSync(this.folder, this.#out);
      syncDirectory(path.dirname(this.#out));
    } catch (error) {
      throw systemError(this.#out, "to give the finished folder its name", error);
    }
  }
  /** Removes what was written: after an error that trying again would meet again. */
  remove(): void {
    this[Symbol.dispose]();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }

  /** Closes files. What was written stays, for whoever comes back. */
  [Symbol.dispose](): void {
    for (const fd of [this.#progress, this.#open?.fd ?? null]) if (fd !== null) fs.closeSync(fd);
    this.#progress = null;
    this.#open = null;
    this.#lock?.[Symbol.dispose]();
    this.#lock = null;
  }
}

function journalLine(index: number, hash: string): string {
  return `${index} ${hash}\n`;
}
