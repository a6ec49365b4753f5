/** A rank of `generateParallel`: started by it in a thread of its own. */
import { runRank } from "../parallel/index.ts";
import type { GenerateJob, GenerateReport } from "./parallel.ts";
import { generateAsRank } from "./rank-body.ts";

await runRank(async ({ engine, communicator, data, emit }): Promise<GenerateReport> =>
  generateAsRank({ engine, communicator }, data as GenerateJob, emit),
);
