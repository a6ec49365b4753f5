/** `moe dashboard`, `moe train --dashboard --tensorboard` and `moe query` as processes. */
import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { tinyRun, TrainProcess, writeConfig } from "../train/harness.ts";

const main = resolve(import.meta.dirname, "../../src/cli/main.ts");
let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-dashboard-cli-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** Standard output until it holds `pattern`. */
async function until(child: ChildProcess, pattern: RegExp): Promise<RegExpExecArray> {
  let text = "";
  return await new Promise((done, fail) => {
    const look = (chunk: Buffer): void => {
      text += chunk.toString();
      const found = pattern.exec(text);
      if (found !== null) done(found);
    };
    child.stdout?.on("data", look);
    child.stderr?.on("data", look);
    child.on("exit", () => fail(new Error(`ended before ${String(pattern)}: ${text}`)));
  });
}

describe("the dashboard's commands", () => {
  test("dashboard prints its address, serves until it is told to end, and ends with success", { timeout: 120_000 }, async () => {
    mkdirSync(join(folder, "runs"));
    const child = spawn(process.execPath, [main, "dashboard", join(folder, "runs"), "--port", "0", "--json"], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const [, url = ""] = await until(child, /"url":"([^"]+)"/);
    expect(await (await fetch(`${url}api/runs`)).json()).toMatchObject({ runs: [] });
    expect(await (await fetch(url)).text()).toContain("moe dashboard");
    const ended = new Promise((done) => child.on("exit", done));
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
  });

  test(
    "train shows the run while it trains, writes TensorBoard's events, and takes the dashboard with it at the end",
    { timeout: 120_000 },
    async () => {
      const run = join(folder, "run");
      const config = writeConfig(join(folder, "config.json"), tinyRun(folder, "moe", { numSteps: 400 }));
      const training = new TrainProcess([config, "--out", run, "--dashboard", "--tensorboard"]);
      const [, url = ""] = await until(training.child, /dashboard: (http:\S+)/);
      const { runs } = (await (await fetch(`${url}api/runs`)).json()) as { runs: { state: string; id: string }[] };
      expect(runs).toHaveLength(1);
      training.child.kill("SIGINT");
      expect((await training.finished).code).toBe(0);
      expect(readdirSync(join(run, "tensorboard"))).toEqual([expect.stringMatching(/^events\.out\.tfevents\.\d+\./)]);
      for (let i = 0; i < 100; i++) {
        const alive = await fetch(url).then(
          () => true,
          () => false,
        );
        if (!alive) return;
        await new Promise((done) => setTimeout(done, 50));
      }
      throw new Error(`${url} still answers`);
    },
  );

  test("query prints a table or JSON, and wrong SQL ends with 2 and one line", () => {
    const run = join(folder, "queried");
    mkdirSync(run);
    writeFileSync(join(run, "metrics.jsonl"), '{"type":"step","step":1,"loss":2.5}\nbroken\n');
    const query = (...args: readonly string[]): { status: number | null; stdout: string; stderr: string } =>
      spawnSync(process.execPath, [main, "query", run, ...args], { encoding: "utf8" });
    const table = query("--sql", "SELECT step, loss FROM steps");
    expect([table.status, table.stdout]).toEqual([0, "step  loss\n1     2.5\n1 rows\n"]);
    expect(table.stderr).toContain("1 lines that are no records");
    expect(JSON.parse(query("--sql", "SELECT step, loss FROM steps", "--json").stdout)).toEqual({
      columns: ["step", "loss"],
      rows: [[1, 2.5]],
      badLines: 1,
    });
    const wrong = query("--sql", "DELETE FROM steps");
    expect([wrong.status, wrong.stderr.trim().split("\n").length]).toEqual([2, 1]);
    expect(query().status).toBe(2);
  });

  test("dashboard refuses a folder that is none and an address that is none, in one line", () => {
    for (const args of [["nowhere"], [folder, "--server", "nonsense"], [folder, "--port", "70000"]]) {
      const { status, stderr } = spawnSync(process.execPath, [main, "dashboard", ...args], { encoding: "utf8", cwd: folder });
      expect([1, 2]).toContain(status);
      expect(stderr).toMatch(/nowhere: expected the folder of a run|--server nonsense: expected an address|expected 0 to 65535/);
    }
  });
});
