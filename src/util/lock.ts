/**
 * One process a folder: the file `lock` in it holds who has it. A process that was killed leaves its lock behind, which the next one
 * takes over: the file names process, its start time (numbers are used again, in containers almost always) and machine, and a
 * holder that no longer runs holds nothing. Of another machine nothing can be known: there a person decides.
 */
import { existsSync, linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { fileError, MoeError } from "./errors.ts";
import { systemError, temporaryName } from "./files.ts";
import { isProcessRunning } from "./process.ts";

interface Holder {
  readonly pid: number;
  readonly host: string;
  /** When the process began, in the kernel's words; null where they are not to be had. */
  readonly started: string | null;
}

export const lockName = "lock";

/**
 * Takes the folder, which must exist, until it is disposed. Throws `resource` when a process that runs has it; `expected` is how the
 * message calls a folder that is free ("a run folder that no process trains in").
 */
export function lockFolder(folder: string, expected: string): Disposable {
  const path = join(folder, lockName);
  const own = JSON.stringify({ pid: process.pid, host: hostname(), started: startOf(process.pid) } satisfies Holder);
  // Each failure means that somebody else changed the file in between; who loses often enough is not alone.
  for (let attempt = 0; attempt < 5; attempt++) {
    if (created(path, own)) return release(path, own);
    const found = contentOf(path);
    if (found === null) continue;
    const holder = parsed(path, found);
    if (isRunning(holder)) throw heldBy(folder, expected, path, holder);
    removeStale(path, found);
  }
  throw new MoeError("resource", `${path}: expected to get the lock, got overtaken by other processes five times`);
}

function created(path: string, content: string): boolean {
  try {
    writeFileSync(path, content, { flag: "wx" });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw systemError(path, "a lock that can be written", error);
  }
}

/** Null when it is gone. */
function contentOf(path: string): string | null {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw systemError(path, "a lock that can be read", error);
  }
}

function parsed(path: string, content: string): Holder | null {
  // Cut short by a crash or a full disk: its writer never went on to its work.
  if (content.trim() === "") return null;
  try {
    const { pid, host, started } = JSON.parse(content) as Partial<Holder>;
    if (typeof pid === "number" && pid > 0 && typeof host === "string") return { pid, host, started: started ?? null };
  } catch {
    // Told below.
  }
  throw fileError(path, "the process that works here", `${JSON.stringify(content.slice(0, 100))}; remove it if none does`);
}

function isRunning(holder: Holder | null): holder is Holder {
  if (holder === null) return false;
  if (holder.host !== hostname()) return true;
  if (!isProcessRunning(holder.pid)) return false;
  const started = startOf(holder.pid);
  return holder.started === null || started === null || started === holder.started;
}

/** Of Linux: field 22 of `/proc/<pid>/stat`, after the name in parentheses, and the boot that it counts from. */
function startOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    return `${boot} ${stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? ""}`;
  } catch {
    return null;
  }
}

/** Removes the lock if it still is the one that was read: what another process has put there meanwhile is put back. */
function removeStale(path: string, found: string): void {
  const aside = temporaryName(path);
  try {
    renameSync(path, aside);
    if (readFileSync(aside, "utf8") !== found && !existsSync(path)) linkSync(aside, path);
  } catch (error) {
    if (!["ENOENT", "EEXIST"].includes((error as NodeJS.ErrnoException).code ?? ""))
      throw systemError(path, "a stale lock to remove", error);
  } finally {
    rmSync(aside, { force: true });
  }
}

function heldBy(folder: string, expected: string, path: string, { pid, host }: Holder): MoeError {
  const elsewhere = host === hostname() ? "" : ` on ${host}; if it no longer runs, remove ${path}`;
  return new MoeError("resource", `${folder}: expected ${expected}, got one of process ${pid}${elsewhere}`);
}

function release(path: string, own: string): Disposable {
  return {
    [Symbol.dispose](): void {
      if (contentOf(path) === own) rmSync(path, { force: true });
    },
  };
}
