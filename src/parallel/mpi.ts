/**
 * Ranks as processes over MPI: this process is one of them. `mpirun` and `srun` start them; rank and size come from MPI itself.
 *
 * Errors: one rank speaks, all end. A rank that fails tells the others why, through the pulse (`native/ranks/pulse.c`), and they end silently; where all
 * fail alike (a configuration that contradicts itself), the lowest rank speaks. Who vanishes without a word (killed, a cut link) is
 * missed within `lostSeconds`, and named by who misses it. Afterwards MPI_Abort ends whatever still lives, so every process has an exit code that is not 0.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Backend } from "../backend/backend.ts";
import { NativeBackend } from "../backend/native/backend.ts";
import { loadBackend } from "../backend/load.ts";
import { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import type { Communicator } from "./communicator.ts";
import { GroupCommunicator } from "./group-communicator.ts";
import { threadsPerRank, type Launcher } from "./launcher.ts";
import { loadMpiLibrary, type MpiCalls } from "./mpi-library.ts";
import { NativeDriver, type NativeHost } from "./native-driver.ts";
import type { RankContext } from "./ranks.ts";

export interface MpiOptions {
  /** Longest that a rank waits for another that lives. Default 10 minutes. */
  readonly timeoutMs?: number;
  /** Silence after which a rank is lost. Default 12. */
  readonly lostSeconds?: number;
}

/** MPI, started. One a process, and once. */
export class MpiWorld implements NativeHost {
  readonly calls: MpiCalls;
  readonly self: number;
  readonly rank: number;
  readonly size: number;
  readonly timeoutMs: number;

  private constructor(calls: MpiCalls, self: number, timeoutMs: number) {
    this.calls = calls;
    this.self = self;
    this.rank = calls.rank(self);
    this.size = calls.size(self);
    this.timeoutMs = timeoutMs;
  }

  /** Throws `resource` where MPI is not installed or does not start, `communication` where the launcher started ranks that MPI does not connect. */
  static async start(launcher: Launcher, { timeoutMs = 600_000, lostSeconds = 12 }: MpiOptions = {}): Promise<MpiWorld> {
    const calls = await loadMpiLibrary();
    const self = calls.init(lostSeconds);
    if (self === 0) throw new MoeError("resource", "MPI does not start: it is started already, or refused to");
    const world = new MpiWorld(calls, self, timeoutMs);
    if (world.size === launcher.size) return world;
    const hint =
      launcher.command === "srun" ? "use srun --mpi=pmix" : "mpirun is of another MPI than the library was built for: npm run build:native";
    throw new MoeError("communication", `${launcher.command} started ${launcher.size} ranks, MPI connects ${world.size}: ${hint}`);
  }

  /** Of all ranks. Throws `unsupported` where memory is not native: MPI takes addresses. */
  communicator(backend: Backend): Communicator {
    if (!(backend instanceof NativeBackend))
      throw new MoeError(
        "unsupported",
        `MPI with the ${backend.name} engine: expected native (npm run build:native), whose memory has addresses`,
      );
    const members = [...Array(this.size).keys()];
    const driver = new NativeDriver(this, members, { parent: 0, split: 0, index: 0 });
    return new GroupCommunicator(backend, driver, { name: "world", rank: this.rank, members });
  }

  check(): void {
    if (this.calls.hasEnded(this.self) !== 0) this.ended();
  }
  ended(): never {
    throw new MoeError("communication", this.calls.reason(this.self));
  }
  /** Nobody: who is through says so to the pulse alone, and waits for the others. */
  gone(): readonly number[] {
    return [];
  }
  failure(): string {
    return this.calls.error(this.self) || "out of memory";
  }
  abort(message: string): void {
    this.calls.end(this.self, message);
  }
  /** Whether another rank said why the group ended: then this one need not. */
  get wasToldWhy(): boolean {
    if (this.calls.hasEnded(this.self) === 0) return false;
    const from = this.calls.reasonRank(this.self);
    return from >= 0 && from !== this.rank;
  }

  /** When all ranks are through. MPI is gone afterwards. Throws `communication` where the group was ended meanwhile. */
  finish(): void {
    if (this.calls.finalize(this.self) !== 0) this.ended();
  }
  /** Ends all processes of the job. */
  exit(code: number): never {
    this.calls.abort(this.self, code);
    return process.exit(code);
  }
}

/** For a lower rank to speak first, where all fail alike. */
const deferMs = 400;
/** For who spoke to end this process too. */
const silentMs = 5000;

/**
 * The body of a rank, in this process: the twin of `runRank`. Gives what the body returned, when all ranks are through. Does not come back where a rank
 * failed: one rank says why through `complain`, and all processes end.
 */
export async function runMpiRank<Result>(
  launcher: Launcher,
  body: (context: RankContext) => Result | Promise<Result>,
  {
    data,
    emit,
    complain,
    ...options
  }: MpiOptions & {
    readonly data: unknown;
    readonly emit: (message: unknown) => void;
    /** Gets the error of the job; returns the exit code. */
    readonly complain: (error: unknown) => number;
  },
): Promise<Result> {
  const world = await MpiWorld.start(launcher, options);
  try {
    using engine = new Engine(await loadBackend(process.env["MOE_THREADS"] ? {} : { numThreads: threadsPerRank(launcher) }));
    const result = await body({ communicator: world.communicator(engine.backend), engine, data, emit });
    world.finish();
    return result;
  } catch (error) {
    if (world.rank > 0 && !world.wasToldWhy) await sleep(deferMs);
    if (world.wasToldWhy) {
      await sleep(silentMs);
      return world.exit(1);
    }
    const code = complain(named(error, world.rank));
    world.abort(error instanceof Error ? error.message : String(error));
    return world.exit(code);
  }
}

/** With the rank, where that says more: rank 0 speaks for all, and who speaks of another names it. */
function named(error: unknown, rank: number): unknown {
  if (rank === 0 || !(error instanceof MoeError) || error.kind === "communication") return error;
  return new MoeError(error.kind, `rank ${rank}: ${error.message}`, { cause: error });
}
