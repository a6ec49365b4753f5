/** Who started this process, and how its ranks run. */
import { expect, test } from "vitest";
import { chooseRanks, findLauncher, rankBehindFirst, threadsPerRank } from "./launcher.ts";

const openMpi = { OMPI_COMM_WORLD_SIZE: "4", OMPI_COMM_WORLD_RANK: "3", OMPI_COMM_WORLD_LOCAL_SIZE: "2" };
const hydra = { PMI_SIZE: "2", PMI_RANK: "0" };
const slurm = { SLURM_STEP_NUM_TASKS: "8", SLURM_PROCID: "5", SLURM_STEP_TASKS_PER_NODE: "4(x2)" };

test("launchers are known by what they leave in the environment", () => {
  expect(findLauncher({})).toBeNull();
  expect(findLauncher(openMpi)).toEqual({ command: "mpirun", rank: 3, size: 4, localSize: 2 });
  expect(findLauncher(hydra)).toEqual({ command: "mpirun", rank: 0, size: 2, localSize: 1 });
  expect(findLauncher(slurm)).toEqual({ command: "srun", rank: 5, size: 8, localSize: 4 });
  // mpirun inside of a Slurm allocation: it is mpirun that counts.
  expect(findLauncher({ ...slurm, ...openMpi })?.command).toBe("mpirun");
  // A batch script is a step of one task, and starts ranks of its own.
  expect(findLauncher({ SLURM_STEP_NUM_TASKS: "1", SLURM_PROCID: "0" })).toBeNull();
});

test("without a launcher ranks are threads, with one they are its processes", () => {
  expect(chooseRanks({ comm: "auto", ranks: undefined }, {})).toEqual({ comm: "single" });
  expect(chooseRanks({ comm: "auto", ranks: 1 }, {})).toEqual({ comm: "single" });
  expect(chooseRanks({ comm: "auto", ranks: 3 }, {})).toEqual({ comm: "local", size: 3 });
  expect(chooseRanks({ comm: "local", ranks: 3 }, {})).toEqual({ comm: "local", size: 3 });
  expect(chooseRanks({ comm: "auto", ranks: undefined }, openMpi)).toMatchObject({ comm: "mpi", launcher: { rank: 3, size: 4 } });
  expect(chooseRanks({ comm: "auto", ranks: 4 }, openMpi)).toMatchObject({ comm: "mpi" });
  expect(chooseRanks({ comm: "auto", ranks: undefined }, { ...openMpi, OMPI_COMM_WORLD_SIZE: "1" })).toEqual({ comm: "single" });
  expect(chooseRanks({ comm: "mpi", ranks: undefined }, { ...openMpi, OMPI_COMM_WORLD_SIZE: "1" })).toMatchObject({ comm: "mpi" });
});

test.each([
  [{ comm: "mpi", ranks: undefined }, {}, "nothing started this as one of several ranks"],
  [{ comm: "auto", ranks: 2 }, openMpi, "--ranks 2: mpirun started 4 ranks"],
  [{ comm: "mpi", ranks: 2 }, slurm, "--ranks 2: srun started 8 ranks"],
  [{ comm: "local", ranks: 2 }, openMpi, "each would start its own again: leave out mpirun"],
  [{ comm: "auto", ranks: 0 }, {}, "--ranks: expected a number of at least 1, got 0"],
] as const)("%o under %o is refused", (asked, env, message) => {
  expect(() => chooseRanks(asked, env)).toThrow(message);
});

test("the first rank speaks", () => {
  expect(rankBehindFirst({})).toBeNull();
  expect(rankBehindFirst(hydra)).toBeNull();
  expect(rankBehindFirst(openMpi)).toBe(3);
});

test("ranks of one machine share its processors, at least one each", () => {
  expect(threadsPerRank({ localSize: 1000 })).toBe(1);
  expect(threadsPerRank({ localSize: 1 })).toBeGreaterThanOrEqual(1);
});
