/**
 * Runs Python programs that a model wrote, to see whether they pass their tests (HumanEval), without trusting them.
 *
 * A program gets CPython compiled to WebAssembly (Pyodide) in a process of its own (interpreter.ts) that has given up its
 * rights before the program arrives (worker.ts). What it can do is compute: it sees an empty file system in memory, no
 * network, no environment, no other process, and is killed at its time or memory limit. Every program starts from a fresh
 * interpreter; with more than one program the interpreter's memory right after its start is kept as a snapshot, which
 * starts the next one in a quarter of the time.
 *
 * What this cannot do: a program shares its interpreter with its test, as in the original harness, so one that sets out to
 * (by patching the test's comparisons, say) can make its own test pass. It cannot do so by what it prints, by its exit or by
 * messages to this process.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { MoeError } from "../../util/errors.ts";
import { checkLimits, Interpreter, type ProgramLimits, type ProgramResult } from "./interpreter.ts";

export type { ProgramLimits, ProgramResult } from "./interpreter.ts";

/** Limits that all 164 reference solutions of HumanEval keep with room to spare on a busy machine. */
export const defaultProgramLimits: ProgramLimits = { timeoutMs: 30_000, memoryBytes: 512 * 2 ** 20 };

export interface SandboxOptions extends ProgramLimits {
  /** Programs at the same time; 2 by default. Each is a process of about 200 MB. */
  readonly concurrency?: number;
}

/** Runs many programs under the same limits. Close it (or declare it with `using`). */
export class Sandbox {
  readonly #limits: ProgramLimits;
  readonly #directory: string;
  readonly #running = new Set<Interpreter>();
  readonly #waiting: (() => void)[] = [];
  #free: number;
  #snapshot: Promise<Uint8Array | null> | undefined;
  #closed = false;

  constructor({ timeoutMs, memoryBytes, concurrency = 2 }: SandboxOptions) {
    checkLimits({ timeoutMs, memoryBytes });
    if (!Number.isInteger(concurrency) || concurrency < 1)
      throw new MoeError("usage", `sandbox: expected a concurrency of at least 1, got ${concurrency}`);
    this.#limits = { timeoutMs, memoryBytes };
    this.#free = concurrency;
    this.#directory = mkdtempSync(path.join(tmpdir(), "moe-sandbox-"));
  }

  /** Runs one program, when its turn comes. Throws `resource` when no interpreter starts; a bad program is a result. */
  async run(program: string): Promise<ProgramResult> {
    this.#snapshot ??= this.#makeSnapshot();
    const snapshot = await this.#snapshot;
    return await this.#inTurn(() => this.#runOne(program, snapshot));
  }

  /** Runs one program in an interpreter started from nothing: for a single program that is the faster way. */
  async runOnce(program: string): Promise<ProgramResult> {
    return await this.#inTurn(() => this.#runOne(program, null));
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#free++;
      else next();
    }
  }

  async #runOne(program: string, snapshot: Uint8Array | null): Promise<ProgramResult> {
    const interpreter = await this.#start(snapshot, false);
    try {
      return await interpreter.interpreter.run(program, this.#limits);
    } finally {
      this.#running.delete(interpreter.interpreter);
    }
  }

  async #start(snapshot: Uint8Array | null, makeSnapshot: boolean): Promise<{ interpreter: Interpreter; snapshot: Uint8Array | null }> {
    if (this.#closed) throw new MoeError("usage", "sandbox: a program was given to a sandbox that is closed");
    const started = await Interpreter.start({ directory: this.#directory, memoryBytes: this.#limits.memoryBytes, snapshot, makeSnapshot });
    this.#running.add(started.interpreter);
    if (this.#closed) started.interpreter.kill();
    return started;
  }

  async #makeSnapshot(): Promise<Uint8Array | null> {
    const { interpreter, snapshot } = await this.#start(null, true);
    interpreter.kill();
    this.#running.delete(interpreter);
    return snapshot;
  }

  /** Kills what still runs and removes the working folder. Programs under way end with outcome `error`. */
  close(): void {
    this.#closed = true;
    for (const interpreter of this.#running) interpreter.kill();
    this.#running.clear();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Runs one program (a solution followed by its test, as one text) and says how it ended. For many programs open a
 * `Sandbox`: it starts each interpreter from a snapshot.
 *
 *     await runHumanEval("assert 1 + 1 == 2", { timeoutMs: 10_000, memoryBytes: 2 ** 29 }); // { passed: true, ... }
 */
export async function runHumanEval(program: string, limits: ProgramLimits): Promise<ProgramResult> {
  using sandbox = new Sandbox({ ...limits, concurrency: 1 });
  return await sandbox.runOnce(program);
}
