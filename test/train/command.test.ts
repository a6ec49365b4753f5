/** `moe train` as people type it: names, settings, what it prints, and exit codes. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { madeUpText, runTrain, tinyRun, TrainProcess, writeConfig } from "./harness.ts";

let folder = "";
let config = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-command-"));
  config = writeConfig(join(folder, "run.json"), tinyRun(folder, "dense", { numSteps: 3 }));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

test("a recipe trains on a text, says what MFU is, and prints one object with --json", async () => {
  const text = join(folder, "recipe.txt");
  writeFileSync(text, madeUpText(1000));
  const settings = ["numSteps=2", "schedule.warmupSteps=1", "batchSequences=2", "evaluation.maxSequences=2"].flatMap((setting) => [
    "--set",
    setting,
  ]);
  const out = join(folder, "recipe");
  const { code, stdout, stderr } = await runTrain(["tiny-moe", "--text", text, "--validation", text, "--out", out, "--json", ...settings]);
  expect(code, stderr).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ runDir: out, stopped: false, step: 2, evaluations: { validation: { numSequences: 2 } } });
  expect(stderr.match(/MFU: model FLOPs a second .* over \d+ GFLOP\/s/g)).toHaveLength(1);
  expect(stderr).toMatch(/2\/2 loss \d\.\d+, \d+ tokens\/s, MFU \d+%, \d+ s left/);
  expect(JSON.parse(readFileSync(join(out, "config.json"), "utf8"))).toMatchObject({ numSteps: 2, newTokenizer: { vocabSize: 512 } });
});

test.each([
  ["an unknown recipe", () => ["tiny-dens"], 2, /no recipe or file "tiny-dens" \(did you mean "tiny-dense"\?\); recipes: /],
  [
    "a missing file",
    () => [join(folder, "none.json")],
    1,
    /none\.json: expected a JSON configuration or the folder of a run, got no such file/,
  ],
  ["a file that is not JSON", () => [join(folder, "text.txt")], 1, /text\.txt: expected a JSON configuration/],
  ["an unknown key in --set", () => [config, "--set", "numStep=2"], 1, /run\.json: unknown key "numStep" \(did you mean "numSteps"\?\)/],
  ["--set without a value", () => [config, "--set", "numSteps"], 2, /--set numSteps: expected key=value/],
  ["a recipe's option for a configuration", () => [config, "--text", "x"], 2, /--text is for recipes/],
  ["an unknown option", () => [config, "--resum"], 2, /unknown option '--resum'[\s\S]*--resume/],
] as const)("%s is told and exits with the documented code", async (_, args, expected, message) => {
  const { code, stdout, stderr } = await runTrain([...args(), "--out", join(folder, "never")]);
  expect(stderr).toMatch(message);
  expect(code).toBe(expected);
  expect(stdout).toBe("");
});

test("the folder of a run is continued only when asked to", async () => {
  const out = join(folder, "run");
  expect((await runTrain([config, "--out", out])).code).toBe(0);
  const again = await runTrain([config, "--out", out]);
  expect(again.code).toBe(1);
  expect(again.stderr).toMatch(/expected a new run folder, got one with checkpoints; resume it \(--resume\)/);
  const named = await runTrain([out]);
  expect(named.code).toBe(2);
  expect(named.stderr).toMatch(/is the folder of a run: add --resume/);
  const elsewhere = await runTrain([out, "--resume", "--out", join(folder, "never")]);
  expect([elsewhere.code, existsSync(join(folder, "never"))]).toEqual([2, false]);
  expect(elsewhere.stderr).toMatch(/is the folder of a run, which goes on where it is/);
});

test("forced balance is named at the start, in the progress, at the end and in the JSON", async () => {
  const out = join(folder, "forced");
  const run = writeConfig(
    join(folder, "forced.json"),
    tinyRun(folder, "skywork", { numSteps: 2, moe: { forcedBalance: true, similarityInterval: 2 } }),
  );
  const { code, stdout, stderr } = await runTrain([run, "--out", out, "--json"]);
  expect(code, stderr).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({ step: 2, forcedBalance: true });
  expect(stderr).toMatch(/FORCED BALANCE: tokens went to experts in turn[\s\S]*2\/2 loss .* forced balance/);
  expect(stderr).toMatch(/step 2, cosine between experts: -?0\.\d{4} of weights, -?0\.\d{4} of outputs \(means over 2 layers\)/);
  const text = await runTrain([out, "--resume"]);
  expect(text.stdout).toMatch(/^2 steps, .*\nFORCED BALANCE: /);
  expect((await runTrain([config, "--out", join(folder, "free"), "--json"])).stdout).not.toContain("forcedBalance");
});

test("a folder in which a process trains is not another's, until that one is gone", async () => {
  const out = join(folder, "busy");
  const long = writeConfig(join(folder, "long.json"), tinyRun(folder, "dense", { numSteps: 100_000, checkpoint: { intervalSteps: 2 } }));
  const first = new TrainProcess([long, "--out", out]);
  await first.seen(/saved/);
  const second = await runTrain([out, "--resume"]);
  expect(second.code).toBe(1);
  expect(second.stderr).toMatch(new RegExp(`busy: expected a run folder that no process trains in, got one of process ${first.child.pid}`));
  first.child.kill("SIGKILL");
  await first.finished;
  expect(existsSync(join(out, "lock"))).toBe(true);
  const { step } = JSON.parse(readFileSync(join(out, "metrics.jsonl"), "utf8").trim().split("\n").at(-1) ?? "{}") as { step: number };
  const third = await runTrain([out, "--resume", "--set", `numSteps=${step + 2}`]);
  expect(third.code, third.stderr).toBe(0);
  expect(existsSync(join(out, "lock"))).toBe(false);
});
