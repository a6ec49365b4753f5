/**
 * Ranks as worker threads of this process: starting them, hearing from them, and ending all of them when one dies.
 *
 * The starting thread is no rank. It never waits, so it notices a dead rank at once, ends the group and reports that rank's error.
 * A rank is a module: it calls `runRank` with what it does.
 *
 * ```ts
 * // rank.ts
 * await runRank(async ({ communicator }) => communicator.rank);
 * // elsewhere
 * const ranks = await startRanks({ size: 3, entry: new URL("./rank.ts", import.meta.url), data: null }).results; // [0, 1, 2]
 * ```
 */
import { availableParallelism } from "node:os";
import { parentPort, Worker, workerData } from "node:worker_threads";
import { loadBackend } from "../backend/load.ts";
import type { BackendOptions } from "../backend/environment.ts";
import { Engine } from "../tensor/index.ts";
import { MoeError, type ErrorKind } from "../util/errors.ts";
import type { Communicator } from "./communicator.ts";
import { ControlBlock } from "./control-block.ts";
import { createLocalGroup, openLocalWorld, type LocalRankMemory, type LocalWorld } from "./local.ts";

export interface RanksOptions {
  readonly size: number;
  /** The module that every rank runs. It calls `runRank`. */
  readonly entry: URL;
  /** For the ranks; must be clonable. */
  readonly data: unknown;
  /** Longest that a rank waits for another. Default 10 minutes (loading a model differs between ranks). */
  readonly timeoutMs?: number;
  /** What ranks compute with. Threads by default: the machine's, shared out. */
  readonly backend?: BackendOptions;
  /** Gets what ranks `emit`. */
  readonly onMessage?: (rank: number, message: unknown) => void;
}

export interface Ranks {
  /** What each rank returned. Rejects with the first error, when all ranks have ended; the group is then gone. */
  readonly results: Promise<unknown[]>;
  /** Ends the group: ranks leave what they wait in, and `results` rejects with this message. */
  abort(message: string): void;
  /** To a rank's `onMessage`. */
  post(rank: number, message: unknown): void;
}

interface RankInit {
  readonly memory: LocalRankMemory;
  readonly data: unknown;
  readonly spins: number;
  readonly timeoutMs: number;
  readonly backend: BackendOptions;
}
type RankReport =
  | { readonly type: "message"; readonly message: unknown }
  | { readonly type: "result"; readonly result: unknown }
  | { readonly type: "error"; readonly kind: ErrorKind | null; readonly message: string };

/** Looks before sleeping, where every rank has a core of its own: about 20 us. */
const spins = 2000;

/** Starts the ranks. Throws `configuration` for a size below 1. */
export function startRanks({ size, entry, data, timeoutMs = 600_000, backend, onMessage }: RanksOptions): Ranks {
  if (!Number.isSafeInteger(size) || size < 1) throw new MoeError("configuration", `ranks: expected at least 1, got ${size}`);
  const memory = createLocalGroup(size);
  const cores = availableParallelism();
  const control = new ControlBlock(memory[0]?.control ?? new SharedArrayBuffer(0), size);
  const workers = memory.map((own) => {
    const init: RankInit = {
      memory: own,
      data,
      timeoutMs,
      spins: size <= cores ? spins : 0,
      backend: { numThreads: Math.max(1, Math.floor(cores / size)), ...backend },
    };
    const transferList = own.ports.filter((port) => port !== null);
    return new Worker(entry, { workerData: init, transferList, execArgv: [] });
  });
  const errors: Error[] = [];
  const fail = (rank: number, error: Error): void => {
    errors.push(error);
    control.abort(failure(rank, error.message));
  };
  const ended = workers.map((worker, rank) => rankResult(worker, rank, fail, onMessage));
  const results = Promise.all(ended).then((list) => {
    // A rank that only noticed that the group was ended is not why.
    const cause = errors.find((error) => !(error instanceof MoeError && error.kind === "communication")) ?? errors[0];
    if (cause !== undefined) throw cause;
    return list;
  });
  return {
    results,
    abort: (message) => {
      errors.unshift(new MoeError("communication", message));
      control.abort(message);
    },
    post: (rank, message) => workers[rank]?.postMessage(message),
  };
}

/** Settles when the worker is gone; never rejects. */
function rankResult(
  worker: Worker,
  rank: number,
  fail: (rank: number, error: Error) => void,
  onMessage: RanksOptions["onMessage"],
): Promise<unknown> {
  return new Promise((resolve) => {
    let result: { value: unknown } | null = null;
    let failed = false;
    worker.on("message", (report: RankReport) => {
      if (report.type === "message") onMessage?.(rank, report.message);
      else if (report.type === "result") result = { value: report.result };
      else {
        failed = true;
        fail(rank, new MoeError(report.kind ?? "internal", `rank ${rank}: ${report.message}`));
      }
    });
    worker.on("error", (error) => {
      failed = true;
      fail(rank, error instanceof Error ? error : new Error(String(error)));
    });
    worker.on("exit", (code) => {
      if (result === null && !failed) fail(rank, new MoeError("communication", `rank ${rank} ended without a result (exit code ${code})`));
      resolve(result?.value);
    });
  });
}

/** What a rank has to work with. The engine ends with the rank. */
export interface RankContext {
  readonly communicator: Communicator;
  readonly engine: Engine;
  /** As given to `startRanks`: the receiver checks it. */
  readonly data: unknown;
  /** To `onMessage` of `startRanks`. */
  readonly emit: (message: unknown) => void;
}

/**
 * The body of a rank's module. The result (clonable) goes to who started the ranks; an error ends the group and goes there too. Throws
 * `internal` where this thread was not started by `startRanks`.
 */
export async function runRank(body: (context: RankContext) => unknown): Promise<void> {
  const port = parentPort;
  const init = workerData as RankInit | null;
  if (port === null || init === null || typeof init !== "object" || !("memory" in init))
    throw new MoeError("internal", "runRank: this thread is no rank, it was not started by startRanks");
  const report = (message: RankReport): void => port.postMessage(message);
  const control = new ControlBlock(init.memory.control, init.memory.size);
  try {
    using engine = new Engine(await loadBackend(init.backend));
    using world = openLocalWorld(engine.backend, init.memory, init);
    const context: RankContext = {
      communicator: world.communicator,
      engine,
      data: init.data,
      emit: (message) => report({ type: "message", message }),
    };
    const result: unknown = await runBody(body, context, world);
    report({ type: "result", result });
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    // First the others, who may be waiting; then whoever started us.
    control.abort(failure(init.memory.rank, text));
    const kind = error instanceof MoeError ? error.kind : null;
    report({ type: "error", kind, message: kind === null && error instanceof Error ? (error.stack ?? text) : text });
  } finally {
    // A body that listened to the port would keep the thread.
    port.close();
  }
}

/** Ends the group where the body fails, while this rank's memory is still there. */
async function runBody(body: (context: RankContext) => unknown, context: RankContext, world: LocalWorld): Promise<unknown> {
  try {
    return await body(context);
  } catch (error) {
    world.fail(failure(context.communicator.rank, error instanceof Error ? error.message : String(error)));
    throw error;
  }
}
function failure(rank: number, text: string): string {
  return `rank ${rank} failed: ${text}`;
}
