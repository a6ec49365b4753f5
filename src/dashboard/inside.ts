/**
 * Reading files of a folder that somebody else filled. Nothing outside it is ever opened: a name is one component that came from a listing or
 * a constant, symbolic links are not followed (neither at the name nor in the folder's own path), and what is not a regular file is not there.
 */
import * as fs from "node:fs";
import { join } from "node:path";

/** Descriptor, size and identity of `folder/name`, or null. `folder` is the real path that a listing gave. */
export function openInside(folder: string, name: string): { fd: number; stat: fs.Stats } | null {
  if (!isPlainName(name)) return null;
  let fd: number | undefined;
  try {
    // A folder that was replaced by a link since it was listed has another real path now.
    if (fs.realpathSync(folder) !== folder) return null;
    // Without O_NONBLOCK, opening a pipe waits for its writer.
    fd = fs.openSync(join(folder, name), fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
    const stat = fs.fstatSync(fd);
    if (stat.isFile()) return { fd, stat };
  } catch {
    // Not there, or not ours to read.
  }
  if (fd !== undefined) fs.closeSync(fd);
  return null;
}

/** One component of a path. */
export function isPlainName(name: string): boolean {
  return name !== "" && name !== "." && name !== ".." && !/[/\\\0]/.test(name);
}

/** Text of a small file in the folder, or null where there is none or it has more than `maxBytes`. */
export function readInside(folder: string, name: string, maxBytes: number): string | null {
  const opened = openInside(folder, name);
  if (opened === null) return null;
  try {
    if (opened.stat.size > maxBytes) return null;
    const bytes = Buffer.alloc(opened.stat.size);
    const count = fs.readSync(opened.fd, bytes, 0, bytes.length, 0);
    return bytes.toString("utf8", 0, count);
  } catch {
    return null;
  } finally {
    fs.closeSync(opened.fd);
  }
}

/** Size, time of change and identity of a regular file in the folder, or null. */
export function statInside(folder: string, name: string): fs.Stats | null {
  if (!isPlainName(name)) return null;
  try {
    const stat = fs.lstatSync(join(folder, name));
    return stat.isFile() ? stat : null;
  } catch {
    return null;
  }
}

/** Real files and folders of a folder, by name; links and the rest are left out. Empty where it cannot be read. */
export function listInside(folder: string): { files: string[]; folders: string[] } {
  try {
    const entries = fs.readdirSync(folder, { withFileTypes: true });
    const named = (keep: (entry: fs.Dirent) => boolean): string[] =>
      entries
        .filter(keep)
        .map(({ name }) => name)
        .toSorted((a, b) => a.localeCompare(b, "en", { numeric: true }));
    return { files: named((entry) => entry.isFile()), folders: named((entry) => entry.isDirectory()) };
  } catch {
    return { files: [], folders: [] };
  }
}
