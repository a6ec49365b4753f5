/** The same over MPI: `node link-mpi.ts '<job>'`; each rank prints a line. */
import { findLauncher, runMpiRank } from "../../src/parallel/index.ts";
import { measureLink, type LinkJob } from "./link-rank.ts";

const launcher = findLauncher();
if (launcher === null) throw new Error("start this by mpirun");
const job = JSON.parse(process.argv[2] ?? "") as LinkJob;
await runMpiRank(launcher, (context) => process.stdout.write(`${JSON.stringify(measureLink(context, job))}\n`), {
  data: null,
  emit: () => undefined,
  complain: (error) => {
    console.error(error);
    return 1;
  },
});
