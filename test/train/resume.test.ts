/** Runs that are killed, stopped, or have no room, as processes. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { RunConfigInput } from "../../src/config/run.ts";
import { listCheckpoints, readCheckpointState } from "../../src/train/index.ts";
import { Random } from "../../src/util/random.ts";
import { checkpointOf, runTrain, tinyRun, trainedBytes, TrainProcess, writeConfig } from "./harness.ts";

const isLong = process.env["MOE_LONG"] === "1";
const numSteps = isLong ? 200 : 40;
const minKills = isLong ? 12 : 3;

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-resume-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/**
 * Everything that could lose a bit: micro-batches, capacity, recomputation, warm-up, clipping, several epochs; and what routing
 * carries from step to step: adaptive coefficients, selection biases, the key of the noise.
 */
function demanding(name: string, precision: "f32" | "bf16"): { config: string; reference: string } {
  const run: RunConfigInput = {
    ...tinyRun(join(folder, name), "skywork"),
    precision,
    numSteps,
    microBatchSequences: 2,
    recomputeLayers: 1,
    moe: {
      capacityFactor: 1.1,
      auxiliaryLossCoefficient: { type: "adaptive", beta: 0.9 },
      zLossCoefficient: 1e-3,
      balanceGroupSequences: 1,
      biasUpdateRate: 1e-3,
      jitterEpsilon: 0.05,
    },
    schedule: { name: "wsd", warmupSteps: 5, decaySteps: 10 },
    checkpoint: { intervalSteps: 3, keep: 2 },
  };
  return { config: writeConfig(join(folder, name, "run.json"), run), reference: join(folder, name, "whole") };
}

describe.each([
  ["f32", "SIGTERM"],
  ["bf16", "SIGINT"],
] as const)("a run in %s", (precision, stopSignal) => {
  let config = "";
  let reference = "";
  beforeAll(async () => {
    ({ config, reference } = demanding(precision, precision));
    const { code, stderr } = await runTrain([config, "--out", reference]);
    expect(code, stderr).toBe(0);
    // The state is one to lose: two layers' coefficients, moved from where they began.
    const { coefficients } = readCheckpointState(checkpointOf(reference, numSteps));
    expect(coefficients).toHaveLength(2);
    for (const alpha of coefficients ?? []) expect(alpha).not.toBe(0.01);
  });

  test("that is killed at random moments and resumed ends with the bits of one that was not", async () => {
    const out = join(folder, precision, "killed");
    const random = new Random(precision === "f32" ? 1 : 2);
    let kills = 0;
    for (let attempt = 0; ; attempt++) {
      expect(attempt).toBeLessThan(20 * minKills);
      const process = new TrainProcess([config, "--out", out, "--resume"]);
      // After a few saves and a moment: in a step, in the middle of a save, or while an old checkpoint is removed.
      if (kills < minKills) {
        await process.seen(/saved/, 1 + random.integer(3));
        await new Promise((resolve) => setTimeout(resolve, random.integer(40)));
        process.child.kill("SIGKILL");
      }
      const { code, signal, stderr } = await process.finished;
      if (code === 0) break;
      expect(signal, stderr).toBe("SIGKILL");
      kills++;
    }
    expect(kills).toBeGreaterThanOrEqual(minKills);
    expect(trainedBytes(checkpointOf(out, numSteps))).toEqual(trainedBytes(checkpointOf(reference, numSteps)));
    const steps = readFileSync(join(out, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => (JSON.parse(line) as { step: number }).step);
    expect(steps).toEqual(Array.from({ length: numSteps }, (_, i) => i + 1));
  });

  test(`saves and exits well on ${stopSignal}, and goes on from there to the same bits`, async () => {
    const out = join(folder, precision, "stopped");
    const process = new TrainProcess([config, "--out", out, "--json"]);
    await process.seen(/saved/);
    process.child.kill(stopSignal);
    const stopped = await process.finished;
    expect(stopped.code, stopped.stderr).toBe(0);
    const summary = JSON.parse(stopped.stdout) as { stopped: boolean; step: number; checkpoint: string };
    expect(summary.stopped).toBe(true);
    expect(summary.step).toBeLessThan(numSteps);
    expect(readCheckpointState(summary.checkpoint).training.step).toBe(summary.step);
    const resumed = await runTrain([out, "--resume", "--json"]);
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(JSON.parse(resumed.stdout)).toMatchObject({ stopped: false, step: numSteps });
    expect(trainedBytes(checkpointOf(out, numSteps))).toEqual(trainedBytes(checkpointOf(reference, numSteps)));
  });
});

/** A run of 4 steps that is to go on to 8 where it cannot be saved. */
async function halfRun(at: string): Promise<string> {
  const config = writeConfig(join(folder, "half.json"), tinyRun(join(folder, "half"), "dense", { numSteps: 4 }));
  const { code, stderr } = await runTrain([config, "--out", at]);
  expect(code, stderr).toBe(0);
  return at;
}
function expectOldCheckpointOnly(run: string): void {
  expect(listCheckpoints(run)).toEqual([checkpointOf(run, 4)]);
  expect(readCheckpointState(checkpointOf(run, 4)).training.step).toBe(4);
  expect(readdirSync(join(run, "checkpoints"))).toEqual(["step-00000004"]);
}

describe("a disk without room", () => {
  test("ends the run with an error that names the file, and leaves the last checkpoint as it was", async () => {
    const run = await halfRun(join(folder, "limited"));
    const { code, stderr } = await runTrain([run, "--resume", "--set", "numSteps=8"], { limit: 64 });
    expect(code, stderr).toBe(1);
    expect(stderr).toMatch(/moe: .*step-00000008.*safetensors: expected to write \d+ bytes .*\(EFBIG\)/);
    expectOldCheckpointOnly(run);
    expect((await runTrain([run, "--resume", "--set", "numSteps=8"])).code).toBe(0);
  });

  const mounted = mountTinyDisk();
  afterAll(() => {
    if (mounted === null) return;
    execFileSync("umount", [mounted]);
    rmSync(mounted, { recursive: true });
  });
  test.skipIf(mounted === null)("is named as such when the file system is full", async () => {
    const run = await halfRun(join(mounted ?? "", "run"));
    // Fills what is left but for a few pages.
    writeFileSync(join(mounted ?? "", "ballast"), new Uint8Array(freeBytes(mounted ?? "") - 65_536));
    const { code, stderr } = await runTrain([run, "--resume", "--set", "numSteps=8"]);
    expect(code, stderr).toBe(1);
    expect(stderr).toMatch(/no space left on the disk \(ENOSPC\)/);
    expectOldCheckpointOnly(run);
  });
});

/** A file system of 4 MB, or null where this user may not mount one. */
function mountTinyDisk(): string | null {
  const at = mkdtempSync(join(tmpdir(), "moe-disk-"));
  mkdirSync(at, { recursive: true });
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=4m", "tmpfs", at], { stdio: "ignore" });
    return at;
  } catch {
    rmSync(at, { recursive: true });
    return null;
  }
}
function freeBytes(path: string): number {
  const out = execFileSync("df", ["--output=avail", "-B1", path]).toString().trim().split("\n");
  return Number(out.at(-1));
}

test("a loss that is not finite ends the run with exit 1, names step and parameter, and leaves the last checkpoint whole", async () => {
  const run = tinyRun(join(folder, "diverging"), "moe", { numSteps: 9, checkpoint: { intervalSteps: 1 } });
  const config = writeConfig(join(folder, "diverging.json"), { ...run, optimizer: { learningRate: 1e30 } });
  const out = join(folder, "diverged");
  const { code, stderr } = await runTrain([config, "--out", out]);
  expect(code, stderr).toBe(1);
  const [, step = ""] =
    /moe: step (\d+): the (?:loss|gradient norm) is (?:NaN|-?Infinity) \(first in the (?:gradient|weights) of [\w.]+\)/.exec(stderr) ?? [];
  const newest = listCheckpoints(out).at(-1) ?? "";
  expect(readCheckpointState(newest).training.step).toBe(Number(step) - 1);
  expect(existsSync(join(newest, "model.safetensors"))).toBe(true);
});
