/** A rank of a served model as a thread: started by the engine's thread, which passes messages on. */
import { parentPort } from "node:worker_threads";
import { runRank } from "../parallel/index.ts";
import type { ToEngine } from "./protocol.ts";
import { runServingRank, type RankVoice, type ServingJob } from "./serving-rank.ts";

await runRank(async ({ engine, communicator, data, emit }) => {
  const voice: RankVoice = {
    post: emit,
    listen: (receive) => {
      parentPort?.on("message", (message: ToEngine) => receive(message));
    },
  };
  await runServingRank(engine, communicator, data as ServingJob, communicator.rank === 0 ? voice : null);
});
