/**
 * Row `allreduce.4mb`: a sum of 4 MiB of f32 over two ranks of this machine, threads against processes. The rival is the faster of our communicator over MPI
 * and MPI_Allreduce itself, which adds in an order of its own.
 */
import { spawnSync } from "node:child_process";
import { existsSync, renameSync } from "node:fs";
import { join } from "node:path";
import { startRanks } from "../src/parallel/index.ts";
import { messageOf, wanted, type Context } from "./context.ts";
import { callsFor, fastest, interleave, type Row, type Side } from "./measure.ts";
import { cacheFolder, LineProcess } from "./process.ts";

const bytes = 4 << 20;
const ranksModule = join(import.meta.dirname, "allreduce-ranks.ts");
/** Root, as in a container, is asked to say that it means it. */
const mpiEnv = { OMPI_ALLOW_RUN_AS_ROOT: "1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1", MOE_THREADS: "1" };
const mpirunArgs = ["--oversubscribe", "--bind-to", "none", "-n", "2"];

/** Who sums; `ask` gives the seconds of so many calls. */
interface Summer extends Disposable {
  readonly ask: (calls: number) => Promise<number>;
}

function threads(): Summer {
  let answered: ((seconds: number) => void) | null = null;
  const ranks = startRanks({
    size: 2,
    entry: new URL("./allreduce-ranks.ts", import.meta.url),
    data: null,
    backend: { numThreads: 1 },
    timeoutMs: 3_600_000,
    onMessage: (_, seconds) => answered?.(Number(seconds)),
  });
  return {
    ask: (calls) =>
      new Promise((resolve, reject) => {
        answered = resolve;
        ranks.results.catch(reject);
        ranks.post(0, `${bytes} ${calls}`);
      }),
    [Symbol.dispose]: () => ranks.post(0, ""),
  };
}

function overMpirun(command: readonly string[]): Summer {
  const running = new LineProcess("mpirun", [...mpirunArgs, ...command], mpiEnv);
  return {
    ask: async (calls) => Number(await running.ask(`${bytes} ${calls}`, 120_000)),
    [Symbol.dispose]: () => running[Symbol.dispose](),
  };
}

/** MPI_Allreduce in a program of its own, compiled once. */
function plainMpi(): Summer {
  const binary = join(cacheFolder(), "allreduce");
  if (!existsSync(binary)) {
    const temporary = `${binary}.${process.pid}`;
    const { status, stderr } = spawnSync("mpicc", ["-O3", "-o", temporary, join(import.meta.dirname, "native", "allreduce.c")]);
    if (status !== 0) throw new Error(`mpicc: ${String(stderr)}`);
    renameSync(temporary, binary);
  }
  return overMpirun([binary]);
}

/** A rate of 10^9 operand bytes a second. */
async function sideOf(summer: Summer, sampleSeconds: number): Promise<Side> {
  await summer.ask(5);
  const calls = callsFor(sampleSeconds, (await summer.ask(20)) / 20);
  return { sample: async () => (bytes * calls) / (await summer.ask(calls)) / 1e9 };
}

export async function* allReduceRows(context: Context): AsyncGenerator<Row> {
  const [name] = wanted(context, ["allreduce.4mb"]);
  if (name === undefined) return;
  const row = { name, unit: "GB/s" } as const;
  using ours = threads();
  const { sampleSeconds } = context.effort;
  const sides = [await sideOf(ours, sampleSeconds)];
  try {
    using mpi = overMpirun([process.execPath, ranksModule]);
    using plain = plainMpi();
    sides.push(await sideOf(mpi, sampleSeconds), await sideOf(plain, sampleSeconds));
    const [local = [], processes = [], allreduce = []] = await interleave(sides, context.effort);
    const note = "2 ranks, 4 MiB of f32; rival: the faster of our communicator over MPI and MPI_Allreduce";
    yield {
      ...row,
      ours: local,
      rival: fastest([processes, allreduce]),
      bar: 1.5,
      others: { mpi: processes, MPI_Allreduce: allreduce },
      note,
    };
  } catch (error) {
    const [local = []] = await interleave(sides.slice(0, 1), context.effort);
    yield { ...row, ours: local, rival: [], bar: null, note: `MPI does not run: ${messageOf(error)}` };
  }
}
