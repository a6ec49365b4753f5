/** `mpirun -n 2 moe train`: the bits of ranks that are threads, and what is wrong at the start is said once. */
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, describe, expect, test } from "vitest";
import { checkpointOf, runTrain, tinyRun, trainedBytes, writeConfig } from "../train/harness.ts";
import { mpirun, mpirunCommand, noMpi, ourLines } from "./mpirun.ts";

const root = resolve(import.meta.dirname, "../..");
const main = pathToFileURL(join(root, "src/cli/main.ts"));
const folder = mkdtempSync(join(tmpdir(), "moe-mpi-train-"));
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});
const config = writeConfig(
  join(folder, "run.json"),
  tinyRun(folder, "skywork", { numSteps: 4, layout: { pp: 2 }, microBatchSequences: 1 }),
);
const patience = 240_000;

/** Losses of a run, step by step. */
function losses(run: string): unknown[] {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trim().split("\n");
  return lines.map((line) => (JSON.parse(line) as { loss?: unknown }).loss);
}
function out(name: string): string {
  return join(folder, name);
}
/** What is wrong is told once, and the job ends at once. */
async function refused(size: number, args: readonly string[], line: RegExp, env: Readonly<Record<string, string>> = {}): Promise<void> {
  const { code, stdout, stderr } = await mpirun(size, main, ["train", ...args], { env, timeoutMs: 60_000 });
  expect(ourLines(stderr), stderr).toHaveLength(1);
  expect(ourLines(stderr)[0]).toMatch(line);
  expect(code).toBeGreaterThan(0);
  expect(stdout).toBe("");
}

describe.skipIf(noMpi !== null)(`moe train over MPI${noMpi === null ? "" : ` (skipped: ${noMpi})`}`, () => {
  test(
    "two processes train the bits of two threads, report once, and one's checkpoint is the other's",
    async () => {
      const threads = await runTrain([config, "--out", out("threads")]);
      expect(threads.code, threads.stderr).toBe(0);
      const processes = await mpirun(2, main, ["train", config, "--out", out("processes"), "--json"]);
      expect(processes.code, processes.stderr).toBe(0);
      expect(JSON.parse(processes.stdout)).toMatchObject({ step: 4, stopped: false });
      // Each of 4 micro-batches of 32 tokens x 32 f32 goes forward once, and its gradient back, in each of 4 steps.
      const sent = 4 * 4 * 32 * 32 * 4 * 2;
      expect(processes.stderr).toMatch(
        /what ranks said to each other, all together:\naxis +operation +calls +bytes +sent +seconds +in flight\n/,
      );
      expect(processes.stderr).toMatch(new RegExp(`^pp +send +\\d+ +${sent} +${sent} `, "m"));
      expect(losses(out("processes"))).toEqual(losses(out("threads")));
      expect(trainedBytes(checkpointOf(out("processes"), 4))).toEqual(trainedBytes(checkpointOf(out("threads"), 4)));
      // Goes on as threads.
      const resumed = await runTrain([out("processes"), "--resume", "--set", "numSteps=5"]);
      expect(resumed.code, resumed.stderr).toBe(0);
    },
    patience,
  );

  test(
    "SIGUSR2 to mpirun finishes the step and saves, on every rank",
    async () => {
      let isTold = false;
      const args = ["train", config, "--out", out("stopped"), "--json", "--set", "numSteps=1000000", "--set", "checkpoint.intervalSteps=5"];
      const { code, stdout, stderr } = await mpirun(2, main, args, {
        onOutput: (text, pid) => {
          if (isTold || !text.includes("saved ")) return;
          isTold = true;
          process.kill(pid, "SIGUSR2");
        },
      });
      expect(code, stderr).toBe(0);
      expect(stderr.match(/stopping after this step/g)).toHaveLength(1);
      const { step, stopped } = JSON.parse(stdout) as { step: number; stopped: boolean };
      expect(stopped).toBe(true);
      expect(existsSync(checkpointOf(out("stopped"), step))).toBe(true);
    },
    patience,
  );

  test(
    "ranks of another number than the layout's are refused",
    () => refused(3, [config, "--out", out("never")], /^moe: mpirun started 3 ranks: the layout has pp 2 \* dp 1 \* tp 1 = 2 ranks/),
    patience,
  );
  test(
    "ranks that mpirun started are not started again",
    async () => {
      await refused(2, [config, "--comm", "local"], /^moe: --comm local: mpirun started 2 ranks, and each would start its own again/);
      await refused(2, [config, "--ranks", "4"], /^moe: --ranks 4: mpirun started 2 ranks; leave out --ranks/);
    },
    patience,
  );
  test(
    "a library that is missing is told, with what to install",
    () =>
      refused(2, [config], /^moe: MPI is not usable here, .*none\.so is missing: install Open MPI/, { MOE_MPI_LIBRARY: out("none.so") }),
    patience,
  );
  test(
    "an unknown option is told once",
    async () => {
      const { code, stderr } = await mpirun(2, main, ["train", config, "--resum"]);
      expect(stderr.match(/unknown option/g)).toHaveLength(1);
      expect(code).toBeGreaterThan(0);
    },
    patience,
  );

  /** Rank 1 is started by another command line. */
  async function unlike(second: readonly string[]): Promise<{ code: number | null; lines: string[]; stderr: string }> {
    const common = ["--oversubscribe", "--bind-to", "none", "-n", "1", process.execPath];
    const first = ["src/cli/main.ts", "train", config, "--out", out("never")];
    const { code, stderr } = await mpirunCommand([...common, ...first, ":", "-n", "1", process.execPath, ...second], { timeoutMs: 60_000 });
    return { code, stderr, lines: ourLines(stderr) };
  }
  test(
    "ranks with different configurations do not start",
    async () => {
      const { code, lines, stderr } = await unlike(["src/cli/main.ts", "train", config, "--out", out("never"), "--set", "numSteps=3"]);
      expect(lines, stderr).toHaveLength(1);
      expect(lines[0]).toMatch(/^moe: ranks 0 and 1 were started with different configurations: start all ranks of a run alike/);
      expect(code).toBeGreaterThan(0);
    },
    patience,
  );
  test(
    "ranks with different versions of the code do not start",
    async () => {
      const other = out("other");
      cpSync(join(root, "src"), join(other, "src"), { recursive: true });
      for (const name of ["package.json", "node_modules", "build", "native"]) symlinkSync(join(root, name), join(other, name));
      writeFileSync(join(other, "src/util/errors.ts"), `${readFileSync(join(root, "src/util/errors.ts"), "utf8")}\n// Another version.\n`);
      const { code, lines, stderr } = await unlike([join(other, "src/cli/main.ts"), "train", config, "--out", out("never")]);
      expect(lines, stderr).toHaveLength(1);
      expect(lines[0]).toMatch(/^moe: ranks 0 and 1 were started with different versions of the code/);
      expect(code).toBeGreaterThan(0);
    },
    patience,
  );
});

test("--comm mpi without mpirun says how to start it", async () => {
  const { code, stderr } = await runTrain([config, "--comm", "mpi"]);
  expect(stderr).toMatch(/^moe: --comm mpi: nothing started this as one of several ranks: start it by mpirun -n <ranks> npx moe/);
  expect(code).toBe(2);
});
