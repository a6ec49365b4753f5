/** Entry of a rank that runs programs: `startRanks` runs it in a worker. */
import { runRank } from "../../src/parallel/index.ts";
import { checkNothingLive, runProgram, type Program } from "./programs.ts";

await runRank(({ engine, communicator, data }) => {
  const results = (data as readonly Program[]).map((program) => runProgram(engine.backend, communicator, program));
  checkNothingLive(engine.backend);
  return results;
});
