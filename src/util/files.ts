/**
 * Files that are either wholly there or not there at all.
 *
 * What is written goes to a temporary name in the same folder, is flushed to the disk (`fsync`), and only then takes its
 * real name (`rename`, atomic on one file system); the folder is flushed as well, so the new name survives a power cut. A
 * process killed in between leaves at most a file whose name starts with a dot and ends in `.tmp`, which no loader looks at
 * and which `removeTemporaries` sweeps. Failures of the disk itself (full, quota, size limit, I/O error) are MoeErrors of
 * kind `resource` that name the file and say how far the write got; a path that cannot be used is one of kind `file`.
 *
 * Everything here is synchronous: checkpoints are written between steps, where nothing else should run.
 * Not here: formats (src/checkpoint) and the memory-mapped token file (src/data).
 */
import * as fs from "node:fs";
import * as path from "node:path";
import { randomBytes } from "node:crypto";
import { fileError, MoeError } from "./errors.ts";
import { isProcessRunning } from "./process.ts";

/** Error codes that mean the disk refused, not that the path is wrong. */
const DISK_PROBLEMS: ReadonlyMap<string, string> = new Map([
  ["ENOSPC", "no space left on the disk"],
  ["EDQUOT", "the disk quota is used up"],
  ["EFBIG", "the file is larger than this system allows"],
  ["EIO", "the disk reported an input/output error"],
  ["EROFS", "the file system is read-only"],
  ["EMFILE", "this process has too many open files"],
  ["ENFILE", "the system has too many open files"],
]);

/** Error codes that say what is wrong with a path, as the `got` of a message. */
const PATH_PROBLEMS: ReadonlyMap<string, string> = new Map([
  ["ENOENT", "nothing of that name"],
  ["ENOTDIR", "a path that leads through something that is not a folder"],
  ["EISDIR", "a folder"],
  ["EACCES", "no permission"],
  ["EPERM", "no permission"],
  ["ELOOP", "a circle of symbolic links"],
  ["ENAMETOOLONG", "a name that is too long"],
  ["EEXIST", "something of that name already there"],
  ["ENOTEMPTY", "a folder that is not empty"],
]);

function errorCode(error: unknown): string {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "";
}

/**
 * Turns an error thrown by `node:fs` into a MoeError that names the file: kind `resource` when the disk refused, kind `file`
 * when the path is wrong. A MoeError passes through unchanged.
 */
export function systemError(filePath: string, expected: string, error: unknown): MoeError {
  if (error instanceof MoeError) return error;
  const code = errorCode(error);
  const disk = DISK_PROBLEMS.get(code);
  if (disk !== undefined) return new MoeError("resource", `${filePath}: expected ${expected}, but ${disk} (${code})`, { cause: error });
  const got = PATH_PROBLEMS.get(code) ?? (error instanceof Error ? error.message : String(error));
  return fileError(filePath, expected, code === "" ? got : `${got} (${code})`, error);
}

/** Opens a regular file for reading and gives its descriptor and size. A folder, a pipe or a device is an error (a pipe would block). */
export function openForReading(filePath: string): { fd: number; size: number } {
  let fd: number | undefined;
  try {
    if (!fs.statSync(filePath).isFile()) throw fileError(filePath, "a regular file", "something else (a folder, a pipe or a device)");
    fd = fs.openSync(filePath, "r");
    return { fd, size: fs.fstatSync(fd).size };
  } catch (error) {
    if (fd !== undefined) fs.closeSync(fd);
    throw systemError(filePath, "a file that can be read", error);
  }
}

/** Fills all of `into` from byte `position` of the file. A file that ends earlier is an error of kind `file`. */
export function readFully(fd: number, into: Uint8Array, position: number, filePath: string): void {
  let done = 0;
  while (done < into.byteLength) {
    let count: number;
    try {
      // Linux moves at most 2 GiB in one call, and libuv takes lengths as 32-bit integers.
      count = fs.readSync(fd, into, done, Math.min(into.byteLength - done, 1 << 30), position + done);
    } catch (error) {
      throw systemError(filePath, `${into.byteLength} bytes at offset ${position}`, error);
    }
    if (count === 0) {
      throw fileError(
        filePath,
        `${into.byteLength} bytes at offset ${position}`,
        `the end of the file after ${done} of them (is it being written, or truncated?)`,
      );
    }
    done += count;
  }
}

/** Writes all of `bytes` at byte `position` of the file. A full disk is an error of kind `resource`. */
export function writeFully(fd: number, bytes: Uint8Array, position: number, filePath: string): void {
  let done = 0;
  while (done < bytes.byteLength) {
    try {
      done += fs.writeSync(fd, bytes, done, Math.min(bytes.byteLength - done, 1 << 30), position + done);
    } catch (error) {
      throw systemError(filePath, `to write ${bytes.byteLength} bytes at offset ${position} (${done} written)`, error);
    }
  }
}

/** Flushes a folder's list of names to the disk. Systems that cannot open a folder (Windows) need and allow no such thing. */
export function syncDirectory(directory: string): void {
  let fd: number;
  try {
    fd = fs.openSync(directory, "r");
  } catch (error) {
    if (["EISDIR", "EPERM", "EACCES"].includes(errorCode(error))) return;
    throw systemError(directory, "a folder that can be flushed to the disk", error);
  }
  try {
    fs.fsyncSync(fd);
  } catch (error) {
    if (!["EINVAL", "ENOTSUP", "EPERM", "EBADF"].includes(errorCode(error)))
      throw systemError(directory, "a folder that can be flushed to the disk", error);
  } finally {
    fs.closeSync(fd);
  }
}

/** A name beside `target` that no loader reads: hidden, and ending in `.tmp`. */
export function temporaryName(target: string): string {
  return path.join(path.dirname(target), `.${path.basename(target)}.${process.pid}-${randomBytes(4).toString("hex")}.tmp`);
}

/**
 * Removes from a folder the temporaries for `name` (or for every name) that killed writers left. Gives how many there were.
 * Those of another process that runs stay: it may be writing the same file into a shared folder.
 */
export function removeTemporaries(directory: string, name?: string): number {
  let count = 0;
  for (const entry of fs.readdirSync(directory)) {
    const [, target, pid] = /^\.(.+)\.(\d+)-[0-9a-f]{8}\.tmp$/.exec(entry) ?? [];
    if (target === undefined || (name !== undefined && target !== name)) continue;
    if (Number(pid) !== process.pid && isProcessRunning(Number(pid))) continue;
    fs.rmSync(path.join(directory, entry), { recursive: true, force: true });
    count++;
  }
  return count;
}

/**
 * A file under construction. Write at any position, then `commit()`; leaving the `using` block without it removes what was
 * written.
 *
 * ```ts
 * using file = new AtomicFile("out/weights.bin");
 * file.write(bytes, 0);
 * file.commit();
 * ```
 */
export class AtomicFile implements Disposable {
  readonly path: string;
  readonly #temporary: string;
  #fd: number | undefined;
  #state: "writing" | "sealed" | "committed" | "aborted" = "writing";

  /** Creates the temporary file. The folder has to exist. */
  constructor(filePath: string) {
    this.path = filePath;
    this.#temporary = temporaryName(filePath);
    try {
      this.#fd = fs.openSync(this.#temporary, "wx");
    } catch (error) {
      throw systemError(filePath, "a place where a file can be created", error);
    }
  }

  /** Writes `bytes` at byte `position`. */
  write(bytes: Uint8Array, position: number): void {
    if (this.#fd === undefined) throw new MoeError("internal", `${this.path}: written to after it was sealed`);
    writeFully(this.#fd, bytes, position, this.path);
  }

  /** Flushes the content to the disk and closes the file, still under its temporary name. */
  seal(): void {
    if (this.#fd === undefined) return;
    const fd = this.#fd;
    try {
      fs.fsyncSync(fd);
    } catch (error) {
      throw systemError(this.path, "to flush the file to the disk", error);
    }
    this.#fd = undefined;
    this.#state = "sealed";
    fs.closeSync(fd);
  }

  /** Seals the file and gives it its real name, replacing an older file. The folder is flushed unless `sync` is false. */
  commit(sync = true): void {
    this.seal();
    if (this.#state !== "sealed") throw new MoeError("internal", `${this.path}: committed although it was ${this.#state}`);
    try {
      fs.renameSync(this.#temporary, this.path);
    } catch (error) {
      throw systemError(this.path, "to give the finished file its name", error);
    }
    this.#state = "committed";
    if (sync) syncDirectory(path.dirname(this.path));
  }

  /** Removes what was written, unless it was committed. Never throws: it runs while another error is on its way. */
  abort(): void {
    if (this.#state === "committed" || this.#state === "aborted") return;
    this.#state = "aborted";
    try {
      if (this.#fd !== undefined) fs.closeSync(this.#fd);
    } catch {
      // The descriptor is gone either way.
    }
    this.#fd = undefined;
    try {
      fs.rmSync(this.#temporary, { force: true });
    } catch {
      // A temporary that stays is harmless, and the first error matters more.
    }
  }

  [Symbol.dispose](): void {
    this.abort();
  }
}

/** Writes a whole small file atomically (configuration, tokenizer, index). Text is UTF-8. */
export function writeFileAtomically(filePath: string, content: string | Uint8Array): void {
  using file = new AtomicFile(filePath);
  file.write(typeof content === "string" ? new TextEncoder().encode(content) : content, 0);
  file.commit();
}

function syncTree(directory: string): void {
  for (const entry of fs.readdirSync(directory, { withFileTypes: true })) {
    const full = path.join(directory, entry.name);
    if (entry.isDirectory()) syncTree(full);
    else if (entry.isFile()) {
      const fd = fs.openSync(full, "r+");
      try {
        fs.fsyncSync(fd);
      } finally {
        fs.closeSync(fd);
      }
    }
  }
  syncDirectory(directory);
}

/**
 * Writes a whole folder atomically: `fill` gets the path of a temporary folder beside `directory`; when it returns,
 * everything in it is flushed and the folder takes its real name. An older folder of that name is moved aside first and
 * removed last (folders cannot be exchanged in one call), so at no moment is there a mixture of old and new.
 */
export function writeDirectoryAtomically<T>(directory: string, fill: (temporary: string) => T): T {
  const temporary = temporaryName(directory);
  try {
    fs.mkdirSync(temporary, { recursive: true });
    const result = fill(temporary);
    syncTree(temporary);
    const old = fs.existsSync(directory) ? temporaryName(directory) : undefined;
    if (old !== undefined) fs.renameSync(directory, old);
    try {
      fs.renameSync(temporary, directory);
    } catch (error) {
      if (old !== undefined) fs.renameSync(old, directory);
      throw error;
    }
    syncDirectory(path.dirname(directory));
    if (old !== undefined) fs.rmSync(old, { recursive: true, force: true });
    return result;
  } catch (error) {
    fs.rmSync(temporary, { recursive: true, force: true });
    throw systemError(directory, "a folder that can be written", error);
  }
}
