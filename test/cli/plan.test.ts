/** `moe plan` as a process: what it prints, what it writes, how long it takes, and what it says of bad input. */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { runCommand } from "../../src/cli/program.ts";
import { clusterPresets } from "../../src/config/cluster-presets.ts";
import { completeLayout, parseLayout } from "../../src/config/layout.ts";
import { toHuggingFaceConfig } from "../../src/config/model-huggingface.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { parseMegatronLayout, type PlanReport } from "../../src/plan/index.ts";

const main = new URL("../../src/cli/main.ts", import.meta.url).pathname;
let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moe-plan-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

function moe(...args: string[]): string {
  return execFileSync(process.execPath, [main, "plan", ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}
/** The command in this process: what it would exit with, and what it says on standard error. */
async function refused(...args: string[]): Promise<{ status: number; message: string }> {
  const out = vi.spyOn(process.stdout, "write").mockReturnValue(true);
  const err = vi.spyOn(process.stderr, "write").mockReturnValue(true);
  try {
    const status = await runCommand(["plan", ...args]);
    expect(out).not.toHaveBeenCalled();
    return { status, message: err.mock.calls.map(([text]) => String(text)).join("") };
  } finally {
    out.mockRestore();
    err.mockRestore();
  }
}
const mixtral = ["mixtral-8x7b", "--cluster", "a800", "--gpus", "32", "--sequence", "4096", "--batch", String(64 * 4096)];
const fixed = ["--pp", "12", "--tp", "4", "--ep", "4", "--etp", "1", "--micro-batch", "1", "--interleave", "1"];

describe("moe plan", () => {
  test("prints one JSON object with the promised keys", () => {
    const report = JSON.parse(moe(...mixtral, "--json")) as PlanReport & { searchSeconds: number };
    const { best } = report;
    for (const key of ["pp", "dp", "tp", "ep", "microBatch"] as const) expect(best[key]).toBeGreaterThan(0);
    expect(best.stages.reduce((a, b) => a + b, 0)).toBe(32);
    expect(best.recompute).toHaveLength(best.stages.length);
    for (const key of ["stepTimeMs", "tokensPerGpuPerSecond", "lowerBoundMs"] as const) expect(report[key]).toBeGreaterThan(0);
    expect(report.memoryBytesPerStage).toHaveLength(best.pp);
    expect(report.searchSeconds).toBeLessThan(10);
  });

  test("answers without search in under a second, the start of the process included", () => {
    // Processor time of the process, since others share the machine: on an idle one it is at least the time on the clock.
    const told = "process.on('exit',()=>{const{user,system}=process.cpuUsage();process.stderr.write(`cpu ${(user+system)/1e6}`)})";
    const seconds = [0, 1, 2].map(() => {
      const args = ["--cluster", "a800", "--gpus", "1536", "--batch", String(1024 * 8192), ...fixed, "--json"];
      const { stdout, stderr } = spawnSync(
        process.execPath,
        ["--import", `data:text/javascript,${told}`, main, "plan", "skywork-moe", ...args],
        {
          encoding: "utf8",
        },
      );
      expect((JSON.parse(stdout) as PlanReport).search.numLayouts).toBe(1);
      return Number(/cpu ([\d.]+)$/.exec(stderr)?.[1]);
    });
    expect(Math.min(...seconds)).toBeGreaterThan(0.05);
    expect(Math.min(...seconds)).toBeLessThan(1);
  });

  test("prints a table with stages, terms, purposes and reasons for people", () => {
    const text = moe(...mixtral, "--tokens", "1e12", "--price", "2");
    for (const part of [
      "best by time: pp",
      "recomputed",
      "computing",
      "exchange of gradients",
      "no plan is better in both time and memory",
      "what the next ones lose",
      "1.00 T tokens",
      "device hours, cost",
    ])
      expect(text).toContain(part);
    expect(text).not.toMatch(/NaN|undefined/);
    const byMemory = moe(...mixtral, "--objective", "memory");
    expect(byMemory).toMatch(/what the next ones hold more:\n  pp .*: [\d.]+ GiB; /);
    expect(byMemory).not.toContain("what the next ones lose");
  });

  test("writes what other programs take: our layout, Megatron's arguments, FlagScale's configuration, timeline, report", () => {
    const out = join(folder, "out");
    const report = JSON.parse(
      moe("skywork-moe", "--cluster", "a800", "--gpus", "96", "--batch", String(96 * 8192), ...fixed, "--out", out, "--json"),
    ) as PlanReport & {
      files: string[];
    };
    expect(readdirSync(out).toSorted()).toEqual([
      "flagscale.yaml",
      "layout.json",
      "megatron-arguments.txt",
      "plan.json",
      "report.html",
      "timeline.json",
    ]);
    expect(report.files).toHaveLength(6);
    const text = (name: string): string => readFileSync(join(out, name), "utf8");
    const layout = completeLayout(parseLayout(JSON.parse(text("layout.json"))), "layout");
    expect(layout.layers).toEqual(report.best.stages);
    const megatron = /--pipeline-model-parallel-layout "([^"]+)"/.exec(text("megatron-arguments.txt"))?.[1] ?? "";
    expect(parseMegatronLayout(megatron).map(({ numLayers }) => numLayers)).toEqual(report.best.stages);
    expect(text("flagscale.yaml")).toContain(`hetero_pipeline_layer_split: [${report.best.stages.join(", ")}]`);
    expect(text("report.html")).toContain("<svg");
    expect((JSON.parse(text("timeline.json")) as { traceEvents: unknown[] }).traceEvents.length).toBeGreaterThan(24);
    expect((JSON.parse(text("plan.json")) as PlanReport).stepTimeMs).toBe(report.stepTimeMs);
    // The layout goes in again, as Megatron writes it.
    const again = JSON.parse(
      moe("skywork-moe", "--cluster", "a800", "--gpus", "96", "--batch", String(96 * 8192), ...fixed, "--layers", megatron, "--json"),
    ) as PlanReport;
    expect(again.stepTimeMs).toBeCloseTo(report.stepTimeMs, 6);
  });

  test("what it writes for other programs computes in the types of the software that was planned for", () => {
    const out = join(folder, "f16");
    const layout = ["--pp", "1", "--dp", "32", "--tp", "2", "--micro-batch", "2"];
    moe("skywork-13b", "--cluster", "a800", "--gpus", "64", ...layout, "--software", "megatron-deepspeed", "--out", out);
    expect(readFileSync(join(out, "megatron-arguments.txt"), "utf8")).toContain("--fp16");
    expect(readFileSync(join(out, "flagscale.yaml"), "utf8")).toContain("fp16: true");
  });

  test("takes a folder, a config.json and a cluster file, and gives what the presets give", () => {
    const config = join(folder, "config.json");
    writeFileSync(config, JSON.stringify(toHuggingFaceConfig(modelPresets["mixtral-8x7b"], "bfloat16")));
    const cluster = join(folder, "cluster.json");
    writeFileSync(cluster, JSON.stringify(clusterPresets["a800"]));
    const args = [
      "--gpus",
      "64",
      "--sequence",
      "4096",
      "--batch",
      String(256 * 4096),
      "--pp",
      "4",
      "--tp",
      "4",
      "--interleave",
      "1",
      "--json",
    ];
    const step = (...given: string[]): number => (JSON.parse(moe(...given, ...args)) as PlanReport).stepTimeMs;
    const expected = step("mixtral-8x7b", "--cluster", "a800");
    expect(step(folder, "--cluster", "a800")).toBe(expected);
    expect(step(config, "--cluster", cluster)).toBe(expected);
  });
});

describe("moe plan refuses in one line that says what would do", () => {
  const broken = (name: string, text: string): string => {
    const path = join(folder, name);
    writeFileSync(path, text);
    return path;
  };
  const preset = (): { nodes: { device: unknown }[] } =>
    structuredClone(clusterPresets["a800"]) as unknown as { nodes: { device: unknown }[] };

  test.each<[string, () => string[], RegExp]>([
    [
      "an unknown model",
      () => ["skywork-mo", "--cluster", "a800"],
      /skywork-mo: expected a model's config.json.* \(did you mean "skywork-moe"\?\); presets: /,
    ],
    ["an unknown cluster", () => ["skywork-moe", "--cluster", "a801"], /unknown cluster "a801" \(did you mean "a800"\?\); known: /],
    [
      "a cluster file that does not exist",
      () => ["skywork-moe", "--cluster", "./a800.json"],
      /a800.json: expected a cluster file \(JSON\) or a preset, got nothing of that name/,
    ],
    [
      "a cluster file that is no JSON",
      () => ["skywork-moe", "--cluster", broken("text.json", "nodes: 3")],
      /text.json: expected a cluster file \(JSON\), got text that is not JSON/,
    ],
    [
      "an unknown device",
      () => {
        const cluster = preset();
        for (const group of cluster.nodes) group.device = "A8000";
        return ["skywork-moe", "--cluster", broken("device.json", JSON.stringify(cluster))];
      },
      /device.json: unknown device "A8000" \(did you mean "A800"\?\); known: /,
    ],
    [
      "a device without memory",
      () => {
        const cluster = preset();
        for (const group of cluster.nodes)
          group.device = { name: "x", peakFlops: { f32: 1e12 }, memoryBytes: -1, memoryBandwidth: 1e12, numUnits: 1 };
        return ["skywork-moe", "--cluster", broken("memory.json", JSON.stringify(cluster))];
      },
      /memory.json/,
    ],
    [
      "a cluster without nodes",
      () => ["skywork-moe", "--cluster", broken("none.json", JSON.stringify({ ...preset(), nodes: [] }))],
      /none.json: nodes/,
    ],
    ["a model file of another kind", () => [broken("other.json", '{"model_type":"bert"}'), "--cluster", "a800"], /other.json.*bert/],
    [
      "devices that are no whole nodes",
      () => ["skywork-moe", "--cluster", "a800", "--gpus", "1001"],
      /1001 devices are not a whole number of nodes/,
    ],
    [
      "a batch that does not divide",
      () => ["skywork-moe", "--cluster", "a800", "--batch", "1000000"],
      /1000000 tokens is not a whole number of sequences of 8192; nearest: 999424 or 1007616 tokens/,
    ],
    [
      "a model that fits nowhere",
      () => ["skywork-moe", "--cluster", "rtx-4090", "--batch", "262144"],
      /none of \d+ layouts fits; nearest: .*the smallest number of them that fits is \d+/,
    ],
    ["a pipeline layout with an unknown letter", () => ["skywork-moe", "--cluster", "a800", "--layers", "Et*51x|L"], /unknown letter "x"/],
  ])("%s", async (_, args, message) => {
    const result = await refused(...args());
    expect(result.message).toMatch(message);
    expect(result.message.trim().split("\n")).toHaveLength(1);
    expect(result.status).toBe(1);
  });

  test("a number of devices that is too small names the smallest that fits, and the command takes that number", async () => {
    const args = ["mixtral-8x7b", "--cluster", "a800", "--sequence", "4096", "--batch", String(64 * 4096), "--gpus"];
    const { message } = await refused(...args, "4");
    const count = /the smallest number of them that fits is (\d+)/.exec(message)?.[1] ?? "";
    expect((JSON.parse(moe(...args, count, "--json")) as PlanReport).cluster.numDevices).toBe(Number(count));
  });

  test("options that are none, and none at all, are wrong usage", async () => {
    expect((await refused("skywork-moe")).status).toBe(2);
    expect((await refused("skywork-moe", "--cluster", "a800", "--zero", "4")).message).toContain("expected 0, 1, 2 or 3");
    for (const serve of [[], ["--serve"]]) {
      const { status, message } = await refused("skywork-moe", "--cluster", "a800", "--memory-reserve", "1", ...serve);
      expect(status).toBe(2);
      expect(message).toContain("expected a number of at least 0 and below 1");
    }
    expect((await refused("skywork-moe", "--cluster", "a800", "--objective", "speed")).status).toBe(2);
    expect((await refused("skywork-moe", "--cluster", "a800", "--recompute", "most")).status).toBe(2);
  });
});
