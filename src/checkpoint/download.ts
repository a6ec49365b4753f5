/**
 * One file over HTTP, resumable and checked: what is there already stays in `.<name>.<digest>.part` beside the target and is
 * asked for no second time; a server that does not do ranges makes it start again; the file takes its name only when its size
 * and its digest are right. The digest in the name of the part is that of the content, so a part never continues another
 * version of the file.
 *
 * Failures that may pass (connection lost or silent, 408, 429, 5xx) are tried again with growing pauses, counted anew whenever
 * bytes have arrived. Not here: which files, from where (hub.ts).
 */
import { createHash, type Hash } from "node:crypto";
import * as fs from "node:fs";
import * as path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileError, MoeError } from "../util/errors.ts";
import { syncDirectory, systemError, writeFully } from "../util/files.ts";

/** Digest of a file: SHA-256 of its bytes, or git's SHA-1 of a blob. */
export interface Digest {
  readonly algorithm: "sha256" | "git";
  /** Lower-case hexadecimal. */
  readonly hex: string;
}

export interface Download {
  readonly url: string;
  readonly target: string;
  readonly numBytes: number;
  readonly digest: Digest;
}

export interface DownloadOptions {
  /** Sends a request; the place for authorization, and for refusals that deserve words of their own (a MoeError is passed on). */
  readonly fetch: (url: string, init: RequestInit) => Promise<Response>;
  /** Failures in a row, without a byte between them, that are tried again. */
  readonly maxRetries: number;
  /** Pause before the first retry; doubles with each, up to half a minute. */
  readonly retryDelayMs: number;
  /** A connection that is silent for so long counts as lost. */
  readonly silenceMs: number;
  readonly onBytes?: (done: number) => void;
}

export type DownloadState = "present" | "downloaded" | "resumed";

/** A failure that another attempt may not have. */
class PassingFailure extends Error {
  readonly pauseMs: number;
  constructor(message: string, pauseMs = 0) {
    super(message);
    this.pauseMs = pauseMs;
  }
}

/**
 * Makes `target` the file that `numBytes` and `digest` describe. Throws `communication` (connection; it names the file, says
 * how far it got and that the same call goes on from there), `file` (not on the server, other content than announced),
 * `resource` (disk).
 */
export async function downloadFile(download: Download, options: DownloadOptions): Promise<DownloadState> {
  const { target, digest, numBytes } = download;
  if (isPresent(download)) return "present";
  const part = path.join(path.dirname(target), `.${path.basename(target)}.${digest.hex.slice(0, 16)}.part`);
  const wasResumed = sizeOf(part) > 0;
  for (let attempt = 0; ; attempt++) {
    await fetchAll(download, part, options);
    const got = digestOf(part, digest.algorithm, numBytes);
    if (got === digest.hex) break;
    fs.rmSync(part, { force: true });
    // A part may have been damaged while it waited; a second failure is the server's.
    if (attempt > 0 || !wasResumed) throw fileError(target, `content with ${digest.algorithm} ${digest.hex}`, got);
  }
  try {
    fs.renameSync(part, target);
  } catch (error) {
    throw systemError(target, "to give the finished file its name", error);
  }
  syncDirectory(path.dirname(target));
  return wasResumed ? "resumed" : "downloaded";
}

function sizeOf(file: string): number {
  const stat = fs.lstatSync(file, { throwIfNoEntry: false });
  if (stat !== undefined && !stat.isFile()) throw fileError(file, "a regular file or nothing", "something else (a folder or a link)");
  return stat?.size ?? 0;
}

function isPresent({ target, numBytes, digest }: Download): boolean {
  const stat = fs.statSync(target, { throwIfNoEntry: false });
  if (stat === undefined) return false;
  if (!stat.isFile()) throw fileError(target, "a file or nothing", "something else of that name");
  return stat.size === numBytes && digestOf(target, digest.algorithm, numBytes) === digest.hex;
}

function newHash(algorithm: Digest["algorithm"], numBytes: number): Hash {
  return algorithm === "sha256" ? createHash("sha256") : createHash("sha1").update(`blob ${numBytes}\0`);
}

function digestOf(file: string, algorithm: Digest["algorithm"], numBytes: number): string {
  const hash = newHash(algorithm, numBytes);
  const fd = fs.openSync(file, "r");
  try {
    const chunk = new Uint8Array(1 << 20);
    for (let count = fs.readSync(fd, chunk); count > 0; count = fs.readSync(fd, chunk)) hash.update(chunk.subarray(0, count));
  } catch (error) {
    throw systemError(file, "a file that can be read", error);
  } finally {
    fs.closeSync(fd);
  }
  return hash.digest("hex");
}

/** Fetches until the part is whole, in as many requests as it takes. */
async function fetchAll(download: Download, part: string, options: DownloadOptions): Promise<void> {
  const { numBytes, target } = download;
  let failures = 0;
  let furthest = sizeOf(part);
  if (sizeOf(part) > numBytes) fs.rmSync(part);
  for (let before = sizeOf(part); before < numBytes || !fs.existsSync(part); before = sizeOf(part)) {
    try {
      await fetchOnce(download, part, before, options);
      failures = 0;
    } catch (error) {
      if (!(error instanceof PassingFailure)) throw error;
      const done = sizeOf(part);
      failures = done > furthest ? 1 : failures + 1;
      furthest = Math.max(furthest, done);
      if (failures > options.maxRetries) {
        const message = `${target}: expected ${numBytes} bytes, but ${error.message} after ${done} of them; run the same command again to go on from there`;
        throw new MoeError("communication", message, { cause: error.cause });
      }
      await sleep(Math.max(error.pauseMs, Math.min(options.retryDelayMs * 2 ** (failures - 1), 30_000)));
    }
  }
}

/** One request for what comes after `from`, appended to the part as it arrives. */
async function fetchOnce(download: Download, part: string, from: number, options: DownloadOptions): Promise<void> {
  const silence = new AbortController();
  const timer = setTimeout(() => {
    silence.abort(new Error(`nothing came for ${options.silenceMs / 1000} s`));
  }, options.silenceMs);
  try {
    const headers: Record<string, string> = { "accept-encoding": "identity", ...(from > 0 ? { range: `bytes=${from}-` } : {}) };
    const response = await passing(options.fetch(download.url, { headers, signal: silence.signal }));
    const start = startOf(response, download, part, from);
    await receive(response, download, part, start, () => timer.refresh(), options.onBytes);
  } finally {
    clearTimeout(timer);
    silence.abort();
  }
}

/** A failed request or read is a lost connection. */
async function passing<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (cause instanceof MoeError) throw cause;
    const reason =
      cause instanceof Error && cause.cause instanceof Error ? cause.cause.message : cause instanceof Error ? cause.message : String(cause);
    const failure = new PassingFailure(`the connection was lost (${reason})`);
    failure.cause = cause;
    throw failure;
  }
}

/** The byte at which the response starts: `from`, or 0 where the server ignored the range. Throws for every other answer. */
function startOf(response: Response, { target, numBytes }: Download, part: string, from: number): number {
  const { status } = response;
  if (status === 200) return 0;
  if (status === 206) {
    const [, start, total] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(response.headers.get("content-range") ?? "") ?? [];
    if (Number(start) === from && (total === "*" || Number(total) === numBytes)) return from;
    throw fileError(
      target,
      `bytes ${from} to ${numBytes} from the server`,
      `content-range ${response.headers.get("content-range") ?? "none"}`,
    );
  }
  if (status === 416 && from > 0) {
    fs.rmSync(part, { force: true });
    throw new PassingFailure("the server refused to continue (416)");
  }
  if (status === 408 || status === 429 || status >= 500) {
    const seconds = Number(response.headers.get("retry-after") ?? 0);
    throw new PassingFailure(`the server answered ${status}`, Number.isFinite(seconds) ? Math.min(seconds, 60) * 1000 : 0);
  }
  if (status === 404) throw fileError(target, "the file on the server, which lists it", "404 (not found)");
  throw new MoeError("communication", `${target}: expected the file, but the server answered ${status}`);
}

async function receive(
  response: Response,
  { target, numBytes }: Download,
  part: string,
  start: number,
  onActivity: () => void,
  onBytes: ((done: number) => void) | undefined,
): Promise<void> {
  let fd: number;
  try {
    fd = fs.openSync(part, start === 0 ? "w" : "r+");
  } catch (error) {
    throw systemError(target, "a place where a file can be created", error);
  }
  let done = start;
  try {
    const reader = response.body?.getReader();
    for (;;) {
      const chunk = reader === undefined ? undefined : await passing(reader.read());
      if (chunk?.value === undefined) break;
      onActivity();
      if (done + chunk.value.byteLength > numBytes) throw fileError(target, `${numBytes} bytes`, "more from the server");
      writeFully(fd, chunk.value, done, target);
      done += chunk.value.byteLength;
      onBytes?.(done);
    }
    fs.fsyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
  if (done < numBytes) throw new PassingFailure("the connection was closed");
}
