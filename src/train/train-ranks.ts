/**
 * A run over ranks that are threads of this process: `train` on each, reports of rank 0 to who started them. Over processes (`mpirun`), every
 * process calls `train` by itself.
 */
import type { BackendOptions } from "../backend/environment.ts";
import { numRanks } from "../config/layout.ts";
import { layoutOf, type RunConfig } from "../config/run.ts";
import { startRanks } from "../parallel/index.ts";
import { MoeError } from "../util/errors.ts";
import type { TrainEvent, TrainResult } from "./run.ts";

export interface TrainRanksOptions {
  readonly config: RunConfig;
  readonly runFolder: string;
  readonly resume?: boolean;
  /** Aborted: the step under way is finished, a checkpoint saved, and the run ends with `stopped`. */
  readonly signal?: AbortSignal;
  readonly onEvent?: (event: TrainEvent) => void;
  /** What ranks compute with. Threads by default: the machine's, shared out. */
  readonly backend?: BackendOptions;
  /** See `TrainOptions`. */
  readonly traceFile?: string;
}
/** For the ranks. */
export interface RankJob {
  readonly config: RunConfig;
  readonly runFolder: string;
  readonly resume: boolean;
  readonly traceFile: string | null;
}

/** Longest that a rank waits for another: rank 0 reads and tokenizes the text while they do. */
export const rankTimeoutMs = 3_600_000;

/** Trains on as many ranks as the configuration's layout has. Throws what the rank that failed first threw. */
export async function trainOnRanks(options: TrainRanksOptions): Promise<TrainResult> {
  const { config, runFolder, resume = false, signal, onEvent, backend, traceFile = null } = options;
  const size = numRanks(layoutOf(config));
  const data: RankJob = { config, runFolder, resume, traceFile };
  const ranks = startRanks({
    size,
    entry: new URL(`./rank${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`, import.meta.url),
    data,
    timeoutMs: rankTimeoutMs,
    ...(backend === undefined ? {} : { backend }),
    onMessage: (rank, event) => {
      // Only the first reports.
      if (rank === 0) onEvent?.(event as TrainEvent);
    },
  });
  const stop = (): void => ranks.post(0, "stop");
  if (signal?.aborted === true) stop();
  signal?.addEventListener("abort", stop, { once: true });
  try {
    const [result] = await ranks.results;
    if (result === undefined) throw new MoeError("internal", "train: no rank");
    return result as TrainResult;
  } finally {
    signal?.removeEventListener("abort", stop);
  }
}
