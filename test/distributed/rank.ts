/** Entry of a rank of the tests of equality: runs the cases one after another, each on as many ranks as it has. */
import { runRank } from "../../src/parallel/index.ts";
import { runCase } from "./run-case.ts";
import type { EqualityJob, Outcome } from "./job.ts";

await runRank(({ engine, communicator, data }) => {
  const { cases, folder, numSteps } = data as EqualityJob;
  const outcomes: (Outcome | null)[] = [];
  for (const one of cases) outcomes.push(runCase({ engine, communicator, folder, numSteps }, one));
  return outcomes;
});
