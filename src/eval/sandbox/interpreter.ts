/**
 * One child process with one Python interpreter, for one program: started, given its program, killed.
 *
 * The process runs under Node's permission model with leave to read the interpreter's files and nothing else: no other file,
 * no writing, no child processes, threads, add-ons, WASI or inspector, and no network (Node before 25 cannot forbid the
 * network by a flag; there only the walls inside worker.ts do). Its environment is empty, its folder is an empty one, its
 * input and output are closed. The WebAssembly heap cannot grow past `memoryBytes` (V8's own limit); what a program puts
 * outside of that heap (files in memory) is caught by looking at the process's resident memory (Linux).
 */
import { spawn, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { MoeError } from "../../util/errors.ts";
import type { WorkerReply, WorkerRequest } from "./worker.ts";

/** Limits of one program. */
export interface ProgramLimits {
  /** Longest time, in ms of wall clock, from handing over the program to its result. Starting the interpreter is not counted. */
  readonly timeoutMs: number;
  /** Most memory of the Python heap, in bytes; at least 64 MiB, at most 4 GiB. */
  readonly memoryBytes: number;
}

/** How a program ended. */
export interface ProgramResult {
  /** The program ran to its end without an exception. */
  readonly passed: boolean;
  /** `failed`: an exception or an exit; `error`: the interpreter itself broke. */
  readonly outcome: "passed" | "failed" | "timeout" | "memory" | "error";
  /** Why it did not pass: end of the traceback or the limit. At most 2000 characters of it are the program's. */
  readonly message: string;
}

/** Resident memory beyond `memoryBytes` that Node and the interpreter themselves may take. */
const overheadBytes = 512 * 2 ** 20;
/** A machine under load needs seconds to start an interpreter; a minute means that it never will. */
const startTimeoutMs = 120_000;
const memoryCheckMs = 50;
const minMemoryBytes = 64 * 2 ** 20;
const maxMemoryBytes = 4 * 2 ** 30;
const wasmPageBytes = 65_536;
const maxStderrCharacters = 4000;

/** Throws `usage` for limits that cannot be kept. */
export function checkLimits({ timeoutMs, memoryBytes }: ProgramLimits): void {
  if (!Number.isFinite(timeoutMs) || timeoutMs <= 0 || timeoutMs > 2 ** 31 - 1) {
    throw new MoeError("usage", `sandbox: expected timeoutMs above 0 and below 2^31, got ${timeoutMs}`);
  }
  if (!Number.isInteger(memoryBytes) || memoryBytes < minMemoryBytes || memoryBytes > maxMemoryBytes) {
    throw new MoeError("usage", `sandbox: expected memoryBytes from ${minMemoryBytes} to ${maxMemoryBytes}, got ${memoryBytes}`);
  }
}

/** Path of the file that the child runs, beside this one: TypeScript in a clone, JavaScript in the package. */
function workerPath(): string {
  return fileURLToPath(new URL(import.meta.url.endsWith(".ts") ? "./worker.ts" : "./worker.js", import.meta.url));
}

function pyodideFolder(): string {
  try {
    return path.dirname(createRequire(import.meta.url).resolve("pyodide"));
  } catch (error) {
    throw new MoeError("file", "sandbox: the package pyodide is missing; run npm install", { cause: error });
  }
}

function flagsOf(worker: string, folder: string, memoryBytes: number): string[] {
  return [
    "--permission",
    `--allow-fs-read=${folder}${path.sep}`,
    `--allow-fs-read=${worker}`,
    "--disallow-code-generation-from-strings",
    "--no-warnings",
    // The optimizing compiler costs more than it gives in a program of a second.
    "--liftoff-only",
    `--wasm-max-mem-pages=${Math.floor(memoryBytes / wasmPageBytes)}`,
    "--max-old-space-size=512",
  ];
}

/** Resident memory of a process in bytes, or null where the system does not say (not Linux, or it has ended). */
function residentBytes(pid: number): number | null {
  try {
    const match = /^VmRSS:\s*(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"));
    return match === null ? null : Number(match[1]) * 1024;
  } catch {
    return null;
  }
}

/** What an interpreter needs to start. `directory` is its working folder, an empty one. */
export interface StartOptions {
  readonly directory: string;
  readonly memoryBytes: number;
  readonly snapshot: Uint8Array | null;
  readonly makeSnapshot?: boolean;
}

export class Interpreter {
  readonly #child: ChildProcess;
  #stderr = "";
  #onReply: (reply: WorkerReply) => void = () => undefined;
  #onExit: (how: string) => void = () => undefined;

  private constructor(child: ChildProcess) {
    this.#child = child;
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-maxStderrCharacters);
    });
    child.on("message", (message) => this.#onReply(message as WorkerReply));
    child.on("error", (error) => this.#onExit(error.message));
    child.on("exit", (code, signal) => this.#onExit(signal === null ? `exit ${code}` : `signal ${signal}`));
  }

  /** Starts a process and waits for its interpreter. Throws `resource` when it does not start, with what it said. */
  static async start(options: StartOptions): Promise<{ interpreter: Interpreter; snapshot: Uint8Array | null }> {
    const folder = pyodideFolder();
    const worker = workerPath();
    const env: NodeJS.ProcessEnv = process.platform === "win32" ? { SystemRoot: process.env["SystemRoot"] } : {};
    const child = spawn(process.execPath, [...flagsOf(worker, folder, options.memoryBytes), worker, folder], {
      cwd: options.directory,
      env,
      stdio: ["ignore", "ignore", "pipe", "ipc"],
      serialization: "advanced",
      windowsHide: true,
    });
    const interpreter = new Interpreter(child);
    interpreter.#send({ kind: "start", snapshot: options.snapshot, makeSnapshot: options.makeSnapshot === true });
    try {
      return { interpreter, snapshot: await interpreter.#ready() };
    } catch (error) {
      interpreter.kill();
      throw error;
    }
  }

  #send(request: WorkerRequest): void {
    // A process that has ended says so by its exit; the failed write adds nothing.
    this.#child.send(request, () => undefined);
  }

  #ready(): Promise<Uint8Array | null> {
    return new Promise((resolve, reject) => {
      const fail = (why: string): void =>
        reject(
          new MoeError(
            "resource",
            `sandbox: the Python interpreter did not start: ${why}${this.#stderr === "" ? "" : `\n${this.#stderr.trim()}`}`,
          ),
        );
      const timer = setTimeout(() => fail(`no answer in ${startTimeoutMs / 1000} s`), startTimeoutMs);
      const settled = (): void => clearTimeout(timer);
      this.#onExit = (how) => (settled(), fail(how));
      this.#onReply = (reply) => {
        settled();
        if (reply.kind === "ready") resolve(reply.snapshot);
        else fail(reply.kind === "unready" ? reply.message : "an answer out of turn");
      };
    });
  }

  /** Runs the one program of this interpreter and ends the process, whatever happens. */
  async run(program: string, { timeoutMs, memoryBytes }: ProgramLimits): Promise<ProgramResult> {
    const nonce = randomBytes(16).toString("hex");
    let timer: NodeJS.Timeout | undefined;
    let watch: NodeJS.Timeout | undefined;
    try {
      return await new Promise<ProgramResult>((resolve) => {
        const end = (outcome: ProgramResult["outcome"], message: string): void =>
          resolve({ passed: outcome === "passed", outcome, message });
        timer = setTimeout(() => end("timeout", `not done after ${timeoutMs} ms`), timeoutMs);
        const { pid } = this.#child;
        watch = setInterval(() => {
          const resident = pid === undefined ? null : residentBytes(pid);
          if (resident !== null && resident > memoryBytes + overheadBytes) end("memory", `the process took ${resident} bytes`);
        }, memoryCheckMs);
        // V8 ends the process with SIGABRT or SIGTRAP where its own heap is full.
        this.#onExit = (how) => end(/ABRT|TRAP|134|133/.test(how) ? "memory" : "error", `the interpreter's process ended: ${how}`);
        this.#onReply = (reply) => {
          if (reply.kind === "done" && reply.nonce === nonce) end(reply.outcome, reply.message);
          else end("error", "the interpreter's process sent what the sandbox did not ask for");
        };
        this.#send({ kind: "run", nonce, program });
      });
    } finally {
      clearTimeout(timer);
      clearInterval(watch);
      this.kill();
    }
  }

  /** Ends the process. May be called more than once. */
  kill(): void {
    this.#onReply = () => undefined;
    this.#onExit = () => undefined;
    this.#child.kill("SIGKILL");
  }
}
