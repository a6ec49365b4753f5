/** Entry of a rank that trains: `trainOnRanks` runs it in a worker. */
import { parentPort } from "node:worker_threads";
import { runRank } from "../parallel/index.ts";
import { train } from "./run.ts";
import type { RankJob } from "./train-ranks.ts";

await runRank(async ({ engine, communicator, data, emit }) => {
  const { config, runFolder, resume, traceFile } = data as RankJob;
  const controller = new AbortController();
  // Whatever comes says: stop after this step.
  parentPort?.on("message", () => controller.abort());
  const trace = traceFile === null ? {} : { traceFile };
  return await train({ engine, config, runFolder, resume, communicator, signal: controller.signal, onEvent: emit, ...trace });
});
