/**
 * The main thread's end of the engine: sends tasks and calls to the thread that computes, and hands on what comes back. When that thread dies, by
 * its own message or without one, everything under way fails with 503 and `onDeath` is told.
 */
import { hostname } from "node:os";
import { Worker } from "node:worker_threads";
import { MoeError } from "../util/errors.ts";
import { isProcessRunning } from "../util/process.ts";
import { ApiError, fromErrorData } from "./errors.ts";
import type {
  Call,
  CallResults,
  EngineSettings,
  EngineStats,
  FromEngine,
  GenerateTask,
  ModelInfo,
  TaskEvent,
  ToEngine,
} from "./protocol.ts";

export interface EngineObserver {
  /** Counters, some ten times a second while there is work. */
  onStats?(stats: EngineStats, experts: readonly (readonly [number, readonly number[]])[]): void;
  /** Something went wrong that the engine survived. */
  onTrouble?(message: string): void;
  /** The engine is gone, and not because it was told to. */
  onDeath?(message: string, exitCode: number): void;
}

/** Something under way, that can be given up. */
export interface RunningTask {
  /** The engine drops it before its next step; no event follows. */
  abort(): void;
}

/** What HTTP needs of an engine; tests may have another. */
export interface EngineClient {
  readonly info: ModelInfo;
  readonly stats: EngineStats;
  /** Tokens of each expert by layer, since the engine began. */
  readonly experts: readonly (readonly [number, readonly number[]])[];
  /** Why it is gone, or null while it is there. */
  readonly death: string | null;
  generate(task: GenerateTask, listener: (event: TaskEvent) => void): RunningTask;
  call<C extends Call>(call: C): Promise<CallResults[C["method"]]>;
  /** Looks whether the processes of all ranks live, as far as they are on this machine; a dead one is the engine's death. */
  checkRanks(): void;
  /** Ends the thread after its current step. */
  shutdown(): Promise<void>;
}

const noStats: EngineStats = {
  running: 0,
  waiting: 0,
  blocksTotal: 0,
  blocksUsed: 0,
  blocksIdle: 0,
  steps: 0,
  computedTokens: 0,
  generatedTokens: 0,
  promptTokens: 0,
  cachedPromptTokens: 0,
  preemptions: 0,
  draftedTokens: 0,
  acceptedTokens: 0,
  liveBytes: 0,
};

/** Milliseconds between two looks at the processes of ranks. */
const watchMs = 200;

interface Pending {
  readonly resolve: (value: CallResults[Call["method"]]) => void;
  readonly reject: (error: Error) => void;
}

class WorkerEngine implements EngineClient {
  readonly info: ModelInfo;
  stats: EngineStats = noStats;
  experts: readonly (readonly [number, readonly number[]])[] = [];
  death: string | null = null;
  readonly #worker: Worker;
  readonly #observer: EngineObserver;
  readonly #listeners = new Map<number, (event: TaskEvent) => void>();
  readonly #calls = new Map<number, Pending>();
  /** Looks after ranks that are processes. */
  readonly #watch: NodeJS.Timeout | null;
  #lastId = 0;
  #isEnding = false;
  #exitCode = 1;

  constructor(worker: Worker, info: ModelInfo, observer: EngineObserver) {
    this.#worker = worker;
    this.info = info;
    this.#observer = observer;
    const hasProcesses = info.ranks.some(({ pid }) => pid !== process.pid);
    this.#watch = hasProcesses ? setInterval(() => this.checkRanks(), watchMs).unref() : null;
    worker.on("message", (message: FromEngine) => {
      this.#receive(message);
    });
    worker.on("error", (error) => {
      this.#die(`the engine's thread failed: ${error instanceof Error ? error.message : String(error)}`);
    });
    worker.on("exit", (code) => {
      if (!this.#isEnding) this.#die(`the engine's thread ended with code ${code}`);
    });
  }

  checkRanks(): void {
    if (this.#isEnding) return;
    for (const [rank, { host, pid }] of this.info.ranks.entries())
      if (host === hostname() && !isProcessRunning(pid)) this.#die(`rank ${rank} is gone (process ${pid} on ${host})`);
  }
  generate(task: GenerateTask, listener: (event: TaskEvent) => void): RunningTask {
    if (this.death !== null) throw gone(this.death);
    const id = ++this.#lastId;
    this.#listeners.set(id, listener);
    this.#send({ type: "generate", id, task });
    return {
      abort: () => {
        if (this.#listeners.delete(id) && this.death === null) this.#send({ type: "abort", id });
      },
    };
  }
  call<C extends Call>(call: C): Promise<CallResults[C["method"]]> {
    if (this.death !== null) return Promise.reject(gone(this.death));
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve: resolve as Pending["resolve"], reject });
      this.#send({ type: "call", id, call });
    });
  }
  #send(message: ToEngine): void {
    this.#worker.postMessage(message, []);
  }

  #receive(message: FromEngine): void {
    switch (message.type) {
      case "events":
        for (const { id, event } of message.events) {
          const listener = this.#listeners.get(id);
          if (event.type === "end" || event.type === "failed") this.#listeners.delete(id);
          listener?.(event);
        }
        break;
      case "stats":
        this.stats = message.stats;
        this.experts = message.experts;
        this.#observer.onStats?.(message.stats, message.experts);
        break;
      case "answer":
        this.#settle(message.id, (pending) => pending.resolve(message.value));
        break;
      case "failed":
        this.#settle(message.id, (pending) => pending.reject(fromErrorData(message.error)));
        break;
      case "trouble":
        this.#observer.onTrouble?.(message.message);
        break;
      case "fatal":
        this.#exitCode = message.exitCode;
        this.#die(message.message);
        break;
      case "ready":
        break;
      default:
        message satisfies never;
    }
  }
  #settle(id: number, how: (pending: Pending) => void): void {
    const pending = this.#calls.get(id);
    this.#calls.delete(id);
    if (pending !== undefined) how(pending);
  }
  #die(message: string): void {
    if (this.death !== null) return;
    this.death = message;
    if (this.#watch !== null) clearInterval(this.#watch);
    const error = gone(message);
    const listeners = [...this.#listeners.values()];
    const calls = [...this.#calls.values()];
    this.#listeners.clear();
    this.#calls.clear();
    for (const listener of listeners) listener({ type: "failed", error: error.data });
    for (const { reject } of calls) reject(error);
    this.#observer.onDeath?.(message, this.#exitCode);
  }

  async shutdown(): Promise<void> {
    if (this.#isEnding || this.death !== null) return;
    this.#isEnding = true;
    if (this.#watch !== null) clearInterval(this.#watch);
    const exited = new Promise<void>((done) => {
      this.#worker.once("exit", () => {
        done();
      });
    });
    this.#send({ type: "shutdown" });
    await exited;
    this.death = "the server is shutting down";
  }
}

function gone(message: string): ApiError {
  return new ApiError(503, `the engine is gone: ${message}`, { code: "engine_gone" });
}

/** Starts the engine's thread and waits until the model is loaded. Rejects with the error of loading. */
export function startEngine(settings: EngineSettings, observer: EngineObserver = {}): Promise<EngineClient> {
  const entry = new URL(`./engine-worker${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`, import.meta.url);
  const worker = new Worker(entry, { workerData: settings, execArgv: [] });
  return new Promise((resolve, reject) => {
    const onError = (error: unknown): void => {
      fail(error instanceof Error ? error.message : String(error), 1);
    };
    const onExit = (code: number): void => {
      fail(`the engine's thread ended with code ${code} while loading`, 1);
    };
    const forget = (): void => {
      worker.off("error", onError).off("exit", onExit).off("message", onMessage);
    };
    const fail = (message: string, exitCode: number): void => {
      forget();
      // Errors of its end are of no interest any more, but must not end the process.
      worker.on("error", () => undefined);
      reject(new MoeError(exitCode === 2 ? "usage" : "file", message));
    };
    const onMessage = (message: FromEngine): void => {
      if (message.type === "fatal") fail(message.message, message.exitCode);
      else if (message.type === "ready") {
        const engine = new WorkerEngine(worker, message.info, observer);
        forget();
        resolve(engine);
      } else fail(`the engine's thread sent ${message.type} before it was ready`, 1);
    };
    worker.on("error", onError).on("exit", onExit).on("message", onMessage);
  });
}
