/** Entry of a rank: `startRanks` runs it in a worker. */
import { runRank } from "../../src/parallel/index.ts";
import { runOperation, type Operation } from "./operations.ts";

await runRank(({ engine, communicator, data }) =>
  (data as readonly Operation[]).map((operation, index) => runOperation(engine.backend, communicator, operation, index)),
);
