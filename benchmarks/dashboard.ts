/**
 * Theme `dashboard`: a run of 100,000 steps with 52 layers of 16 experts, made up once (3.5 GB of records in the form that the trainer writes,
 * values at random), opened by `moe dashboard` in a process of its own. Requests are those of the page's views, over HTTP on this machine, after
 * the index is there; each row is the slowest of its requests as a share of 100 ms. While the index is being built, requests are timed as well.
 * `--quick`: 2000 steps.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, renameSync, statSync, writeSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { RunDetail, RunList } from "../src/dashboard/api.ts";
import { Random } from "../src/util/random.ts";
import { wants, type Context } from "./context.ts";
import { efforts, median, type Row } from "./measure.ts";
import { cacheFolder } from "./process.ts";

const [numLayers, numExperts] = [52, 16];
/** Milliseconds that a request may take. */
const budget = 100;

function line(step: number, random: Random): string {
  const layers = Array.from({ length: numLayers }, (_, layer) => {
    const weights = Array.from({ length: numExperts }, () => 0.2 + random.uniform());
    const sum = weights.reduce((a, b) => a + b, 0);
    return {
      layer,
      dropRate: random.uniform() / 10,
      numDropped: random.integer(10_000),
      coefficient: random.uniform() / 100,
      auxiliaryLoss: random.uniform() / 50,
      switchLoss: null,
      sequenceLoss: null,
      zLoss: random.uniform(),
      max1OverMax2: 1 + random.uniform(),
      max2OverMax3: 1 + random.uniform(),
      gateEntropy: random.uniform(),
      loadEntropy: random.uniform(),
      maxOverMeanLoad: 1 + random.uniform(),
      deadExperts: random.integer(3),
      load: weights.map((weight) => weight / sum),
    };
  });
  const scalars = { step, loss: 2 + 8 / step, auxiliaryLoss: random.uniform(), learningRate: 1e-3, gradNorm: random.uniform() };
  const speed = { tokens: 4_194_304, seconds: 10 + random.uniform(), tokensPerSecond: 4e5, mfu: 0.4, peakBytes: 6e10 };
  return `${JSON.stringify({ type: "step", ...scalars, ...speed, layers })}\n`;
}

/** The folder of the made-up run; made once. */
function madeUpRun(numSteps: number, log: Context["log"]): string {
  const folder = join(cacheFolder(), `dashboard-${numSteps}`);
  const path = join(folder, "metrics.jsonl");
  if (existsSync(path)) return folder;
  log(`dashboard: writing ${numSteps} steps`);
  mkdirSync(folder, { recursive: true });
  const random = new Random(1);
  const fd = openSync(`${path}.new`, "w");
  for (let step = 1; step <= numSteps; step++) writeSync(fd, line(step, random));
  closeSync(fd);
  renameSync(`${path}.new`, path);
  return folder;
}

async function startProcess(folder: string): Promise<{ child: ChildProcess; url: string }> {
  const main = resolve(import.meta.dirname, "../src/cli/main.ts");
  const child = spawn(process.execPath, [main, "dashboard", folder, "--port", "0", "--json"], { stdio: ["ignore", "pipe", "inherit"] });
  const url = await new Promise<string>((done, fail) => {
    child.stdout.once("data", (text: Buffer) => done((JSON.parse(text.toString()) as { url: string }).url));
    child.once("exit", (code) => fail(new Error(`moe dashboard ended with ${String(code)}`)));
  });
  return { child, url };
}

async function timed(url: string): Promise<{ ms: number; body: unknown; bytes: number }> {
  const started = performance.now();
  const response = await fetch(url);
  const text = await response.text();
  const ms = performance.now() - started;
  if (!response.ok) throw new Error(`${url}: ${response.status} ${text}`);
  return { ms, body: JSON.parse(text) as unknown, bytes: text.length };
}

/** Requests of the page by view, as it makes them (`dashboard/src/views`). */
function requests(last: number): Readonly<Record<string, readonly string[]>> {
  const keys = "loss,auxiliaryLoss,learningRate,gradNorm,tokensPerSecond,mfu,peakBytes,seconds";
  const grids = ["dropRate", "zLoss", "max1OverMax2", "gateEntropy", "maxOverMeanLoad"];
  return {
    scalars: [`/series?keys=${keys}&points=500`, `/series?keys=loss&points=500&from=1000&to=${Math.round(last / 3)}`],
    layer: [`/layer?layer=17&keys=dropRate,coefficient,maxOverMeanLoad,loadEntropy&points=500`],
    grid: grids.map((key) => `/grid?key=${key}&points=240`),
    load: [`/load?to=${last}`, `/load?to=${Math.round(last / 2)}`, `/load?from=1&to=${last}`, `/load?from=777&to=${last - 333}`],
    experts: [`/experts?layer=3&points=200`, `/experts?layer=51&points=200&from=500&to=${Math.round(last / 2)}`],
    detail: [""],
  };
}

/** Share of physical memory, MB, of a process. */
function residentMegabytes(pid: number | undefined): number {
  const kilobytes = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid ?? "self"}/status`, "utf8"))?.[1];
  return Math.round(Number(kilobytes) / 1000);
}

export async function* dashboardRows(context: Context): AsyncGenerator<Row> {
  const numSteps = context.effort.samples <= efforts.quick.samples ? 2000 : 100_000;
  const folder = madeUpRun(numSteps, context.log);
  const { size } = statSync(join(folder, "metrics.jsonl"));
  const { child, url } = await startProcess(folder);
  try {
    const [run] = ((await timed(`${url}api/runs`)).body as RunList).runs;
    const base = `${url}api/runs/${run?.id ?? ""}`;
    const begun = performance.now();
    const meanwhile: number[] = [];
    for (let complete = false; !complete;) {
      const { ms, body } = await timed(base);
      meanwhile.push(ms);
      ({ complete } = (body as RunDetail).index);
      // One grid a second, the heaviest answer, as a page makes it when it hears of progress.
      if (!complete) meanwhile.push((await timed(`${base}/grid?key=dropRate&points=240`)).ms);
      await sleep(100);
    }
    const seconds = (performance.now() - begun) / 1000;
    const memory = residentMegabytes(child.pid);
    const note = `${numSteps} steps, ${(size / 1e9).toFixed(2)} GB in ${seconds.toFixed(1)} s (${(size / 1e6 / seconds).toFixed(0)} MB/s), ${memory} MB resident`;
    if (wants(context, "dashboard.index"))
      yield { name: "dashboard.index", ours: [numSteps / seconds], rival: [], unit: "rows/s", bar: null, note };
    // The first request opens the run and may wait 200 ms for the first records.
    const [opening = 0, ...later] = meanwhile;
    if (later.length > 0 && wants(context, "dashboard.request.indexing"))
      yield shareRow("dashboard.request.indexing", later, `while the index is built; opening the run took ${opening.toFixed(0)} ms`);
    for (const [name, paths] of Object.entries(requests(numSteps))) {
      if (!wants(context, `dashboard.request.${name}`)) continue;
      const times: number[] = [];
      let bytes = 0;
      for (let round = 0; round < 2 + 3 * context.effort.samples; round++)
        for (const path of paths) {
          const answer = await timed(base + path);
          if (round >= 2) times.push(answer.ms);
          bytes = Math.max(bytes, answer.bytes);
        }
      yield shareRow(`dashboard.request.${name}`, times, `${times.length} requests, answers of up to ${(bytes / 1000).toFixed(0)} kB`);
    }
  } finally {
    child.kill("SIGTERM");
  }
}

/** The slowest request as a share of the budget. */
function shareRow(name: string, times: readonly number[], what: string): Row {
  const worst = times.reduce((a, b) => Math.max(a, b), 0);
  const note = `slowest ${worst.toFixed(1)} ms, median ${median(times).toFixed(1)} ms, of ${budget} ms; ${what}`;
  return { name, ours: [worst / budget], rival: [], unit: "share", bar: 1, note };
}
