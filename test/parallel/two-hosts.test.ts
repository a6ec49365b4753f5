/**
 * Two hosts: MPI ranks in network namespaces of their own, joined by a veth pair (`scripts/two-hosts.sh`), so that all they say to each other
 * crosses a network that can be cut. Needs root.
 */
import { execFile, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { deserialize, serialize } from "node:v8";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { checkpointOf, runTrain, tinyRun, trainedBytes, writeConfig } from "../train/harness.ts";
import { chosenPrograms, randomPrograms } from "./arbitrary-programs.ts";
import { mpirunEnv, noMpi, ourLines, type Ended } from "./mpirun.ts";
import { firstDifference } from "./programs.ts";

const root = resolve(import.meta.dirname, "../..");
const script = join(root, "scripts/two-hosts.sh");
const network = `m${process.pid % 1_000_000}`;
const run = promisify(execFile);

async function hosts(verb: string): Promise<string> {
  return (await run(script, [verb, network])).stdout.trim();
}

/** Why there can be no two hosts here; null where there can. */
const reason = await (async (): Promise<string | null> => {
  if (noMpi !== null) return noMpi;
  if (process.getuid?.() !== 0) return "network namespaces need root";
  if (spawnSync("ip", ["-V"]).status !== 0) return "ip is not installed (Debian: iproute2)";
  // Containers may forbid it.
  return hosts("up").then(
    () => null,
    (error: unknown) => `network namespaces cannot be made here: ${String(error).split("\n").at(-2)}`,
  );
})();

const folder = mkdtempSync(join(tmpdir(), "moe-two-hosts-"));
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  if (reason === null) await hosts("down");
});
const patience = 240_000;

/** A job over both hosts. */
class Job {
  readonly ended: Promise<Ended>;
  #output = "";
  readonly #waiting = new Set<() => void>();

  constructor(module: string, args: readonly string[]) {
    const started = performance.now();
    const { NODE_OPTIONS: _, ...inherited } = process.env;
    const env = { ...inherited, ...mpirunEnv, MOE_THREADS: "1" };
    const child = spawn(script, ["run", network, "-n", "2", process.execPath, join(root, module), ...args], {
      env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      this.#output = stderr;
      for (const check of this.#waiting) check();
    });
    this.ended = new Promise((done) => {
      child.on("close", (code) => {
        for (const check of this.#waiting) check();
        done({ code, stdout, stderr, seconds: (performance.now() - started) / 1000 });
      });
    });
  }
  /** When standard error has this, or the job has ended. */
  async seen(pattern: RegExp): Promise<void> {
    await Promise.race([
      this.ended,
      new Promise<void>((done) => {
        const check = (): void => {
          if (pattern.test(this.#output)) done();
        };
        this.#waiting.add(check);
        check();
      }),
    ]);
  }
}

/** Processes of ranks that are still there, on one host. */
async function ranksOn(side: "a" | "b"): Promise<number[]> {
  const { stdout } = await run("ip", ["netns", "pids", `${network}${side}`]);
  return stdout
    .split("\n")
    .map(Number)
    .filter((pid) => {
      const commandLine = `/proc/${pid}/cmdline`;
      return pid > 0 && existsSync(commandLine) && readFileSync(commandLine, "utf8").split("\0")[0] === process.execPath;
    });
}
/** Whether all ranks are gone within this time. */
async function goneWithin(seconds: number): Promise<boolean> {
  for (let i = 0; i < seconds * 5; i++) {
    if ((await ranksOn("a")).length + (await ranksOn("b")).length === 0) return true;
    await new Promise((turn) => setTimeout(turn, 200));
  }
  return false;
}

describe.skipIf(reason !== null)(`two hosts${reason === null ? "" : ` (skipped: ${reason})`}`, () => {
  const numSteps = 80;
  const settings = { numSteps, layout: { pp: 2 }, microBatchSequences: 1, checkpoint: { intervalSteps: 5 } } as const;
  let config = "";
  let expected = "";
  beforeAll(async () => {
    config = writeConfig(join(folder, "run.json"), tinyRun(folder, "skywork", settings));
    // Not interrupted, on two threads.
    expected = join(folder, "expected");
    const { code, stderr } = await runTrain([config, "--out", expected]);
    expect(code, stderr).toBe(0);
  }, patience);

  test(
    "what ranks say to each other crosses the network, and is what it is on one host",
    async () => {
      const programs = [...randomPrograms(2, 20, 20261128), ...chosenPrograms(2)];
      writeFileSync(join(folder, "programs"), serialize(programs));
      const before = Number(await hosts("bytes"));
      const { code, stderr } = await new Job("test/parallel/programs-mpi.ts", [folder]).ended;
      expect(code, stderr).toBe(0);
      const byRank = [0, 1].map((rank) => deserialize(readFileSync(join(folder, String(rank)))) as Uint8Array[][]);
      for (const [index, program] of programs.entries()) {
        const found = firstDifference(
          program,
          2,
          byRank.map((results) => results[index] ?? []),
        );
        expect(found, `program ${index}: ${JSON.stringify(program)}`).toBeNull();
      }
      // The first chosen program alone sends 150,001 f32 halves and gathers 300,000 bytes.
      expect(Number(await hosts("bytes")) - before).toBeGreaterThan(500_000);
    },
    patience,
  );

  test.each([
    ["a cut link", /^moe: rank 1 is lost: rank 0 on .* has heard nothing from it for 12 s/m, () => hosts("cut")],
    [
      "a killed rank",
      /process rank 1 .*exited on signal 9|^moe: rank 1 is lost/m,
      async () => {
        for (const pid of await ranksOn("b")) process.kill(pid, "SIGKILL");
      },
    ],
  ] as const)(
    "%s ends every rank within 30 s, names the rank that is gone, and the run goes on from its last checkpoint to the same end",
    async (what, line, breakIt) => {
      const out = join(folder, what.replaceAll(" ", "-"));
      const job = new Job("src/cli/main.ts", ["train", config, "--out", out]);
      await job.seen(/saved .*step-00000010/);
      const broken = performance.now();
      await breakIt();
      const { code, stderr } = await job.ended;
      expect((performance.now() - broken) / 1000).toBeLessThan(30);
      expect(stderr).toMatch(line);
      expect(ourLines(stderr).length).toBeLessThanOrEqual(1);
      expect(code).toBeGreaterThan(0);
      expect(await goneWithin(30 - (performance.now() - broken) / 1000)).toBe(true);
      await hosts("mend");

      const last =
        readdirSync(join(out, "checkpoints"))
          .filter((name) => name.startsWith("step-"))
          .toSorted()
          .at(-1) ?? "";
      expect(existsSync(checkpointOf(out, numSteps)), "it was over before it broke").toBe(false);
      const resumed = await new Job("src/cli/main.ts", ["train", out, "--resume"]).ended;
      expect(resumed.code, resumed.stderr).toBe(0);
      const [, first = ""] = /saved .*(step-\d+)/.exec(resumed.stderr) ?? [];
      expect(Number(first.slice(5))).toBe(Number(last.slice(5)) + 5);
      // The end of the run that was never interrupted, on threads.
      expect(trainedBytes(checkpointOf(out, numSteps))).toEqual(trainedBytes(checkpointOf(expected, numSteps)));
    },
    patience,
  );
});
