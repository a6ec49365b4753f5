/**
 * Who started this process: `mpirun` and `srun` start one for each rank and say so in the environment. And from that and what was asked
 * for, how ranks run: in this process alone, as threads of it, or as processes over MPI.
 */
import { availableParallelism, cpus } from "node:os";
import { MoeError } from "../util/errors.ts";

export const commNames = ["auto", "local", "mpi"] as const;
export type CommName = (typeof commNames)[number];

export interface Launcher {
  readonly command: "mpirun" | "srun";
  readonly rank: number;
  readonly size: number;
  /** Ranks on this machine, as far as the launcher says. */
  readonly localSize: number;
}

/** Names of variables: size, rank, ranks on this machine. */
const variables = [
  { command: "mpirun", size: "OMPI_COMM_WORLD_SIZE", rank: "OMPI_COMM_WORLD_RANK", local: "OMPI_COMM_WORLD_LOCAL_SIZE" },
  // MPICH's Hydra, and srun --mpi=pmi2.
  { command: "mpirun", size: "PMI_SIZE", rank: "PMI_RANK", local: "MPI_LOCALNRANKS" },
  // srun --mpi=pmix, or without any MPI.
  { command: "srun", size: "SLURM_STEP_NUM_TASKS", rank: "SLURM_PROCID", local: "SLURM_STEP_TASKS_PER_NODE" },
] as const;

function count(text: string | undefined): number | null {
  const digits = /^\d+/.exec(text ?? "");
  return digits === null ? null : Number(digits[0]);
}

/** What started this process as one of several; null where nothing did. */
export function findLauncher(env: NodeJS.ProcessEnv = process.env): Launcher | null {
  for (const { command, size: sizeName, rank: rankName, local } of variables) {
    const [size, rank] = [count(env[sizeName]), count(env[rankName])];
    if (size === null || rank === null) continue;
    // A batch script is itself a step of one task; so is a plain program under mpirun -n 1.
    if (size === 1 && command === "srun") continue;
    return { command, rank, size, localSize: Math.min(size, count(env[local]) ?? 1) };
  }
  return null;
}

export type RanksChoice =
  | { readonly comm: "single" }
  | { readonly comm: "local"; readonly size: number }
  | { readonly comm: "mpi"; readonly launcher: Launcher };

/**
 * How ranks run. `ranks`: how many were asked for. Throws `usage` where that contradicts who started us.
 * @example
 * chooseRanks({ comm: "auto", ranks: 2 }, {}); // { comm: "local", size: 2 }
 */
export function chooseRanks(
  { comm, ranks }: { readonly comm: CommName; readonly ranks: number | undefined },
  env: NodeJS.ProcessEnv = process.env,
): RanksChoice {
  if (ranks !== undefined && (!Number.isSafeInteger(ranks) || ranks < 1))
    throw new MoeError("usage", `--ranks: expected a number of at least 1, got ${ranks}`);
  const launcher = findLauncher(env);
  if (launcher === null) {
    if (comm === "mpi")
      throw new MoeError(
        "usage",
        "--comm mpi: nothing started this as one of several ranks: start it by mpirun -n <ranks> npx moe ..., or by srun",
      );
    return ranks === undefined || ranks === 1 ? { comm: "single" } : { comm: "local", size: ranks };
  }
  const started = `${launcher.command} started ${launcher.size} ${launcher.size === 1 ? "rank" : "ranks"}`;
  if (comm === "local") {
    if (launcher.size > 1)
      throw new MoeError(
        "usage",
        `--comm local: ${started}, and each would start its own again: leave out ${launcher.command}, or use --comm mpi`,
      );
    return ranks === undefined || ranks === 1 ? { comm: "single" } : { comm: "local", size: ranks };
  }
  if (ranks !== undefined && ranks !== launcher.size)
    throw new MoeError("usage", `--ranks ${ranks}: ${started}; leave out --ranks, ${launcher.command} says how many there are`);
  if (launcher.size === 1 && comm === "auto") return { comm: "single" };
  return { comm: "mpi", launcher };
}

/** Threads of a rank: the processors that it was bound to, or its share of the machine. */
export function threadsPerRank({ localSize }: Pick<Launcher, "localSize">): number {
  const mine = availableParallelism();
  return mine < cpus().length ? mine : Math.max(1, Math.floor(mine / Math.max(1, localSize)));
}

/** How long other ranks keep an error of before ranks were connected to themselves. */
export const behindFirstMs = 3000;

/** This process's rank where a launcher started it behind another; null otherwise. */
export function rankBehindFirst(env: NodeJS.ProcessEnv = process.env): number | null {
  const launcher = findLauncher(env);
  return launcher === null || launcher.rank === 0 ? null : launcher.rank;
}
