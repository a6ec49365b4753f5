/**
 * One folder as the dashboard knows it: its state, its indexes, which are built when somebody first looks and then follow the files, and its
 * other files. Reading is cut into slices of some milliseconds, so that requests are answered while a file of gigabytes is indexed.
 */
import { hostname } from "node:os";
import type { IndexState, RunDetail, RunSummary, SampleText, SimilarityMatrix } from "./api.ts";
import { Artifacts, promptsOf } from "./artifacts.ts";
import { openInside, readInside, statInside } from "./inside.ts";
import { LineTail } from "./line-tail.ts";
import { MetricsIndex, similarityMatrix } from "./metrics-index.ts";
import { asCount, asNumber, asObject, asText, boundedJson, parseJson } from "./record.ts";
import { SamplesIndex, sampleText } from "./samples-index.ts";
import { isProcessRunning } from "../util/process.ts";
import * as fs from "node:fs";

const sliceBytes = 512 << 10;
const sliceMilliseconds = 20;
const configBytes = 4 << 20;
/** From the end of a file, for the last record of a run that nobody has opened. */
const tailBytes = 1 << 20;

export class DashboardRun {
  readonly id: string;
  readonly name: string;
  /** The real path. */
  readonly folder: string;
  readonly kind: RunSummary["kind"];
  metrics = new MetricsIndex();
  samples = new SamplesIndex();
  readonly artifacts: Artifacts;
  readonly #metricsTail: LineTail;
  readonly #samplesTail: LineTail;
  #version = 0;
  #complete = false;
  #building: Promise<void> | null = null;
  #last: { stamp: string; step: number | null; loss: number | null } = { stamp: "", step: null, loss: null };
  #config: { stamp: string; json: unknown } = { stamp: "none", json: null };

  constructor(id: string, name: string, folder: string, kind: RunSummary["kind"]) {
    this.id = id;
    this.name = name;
    this.folder = folder;
    this.kind = kind;
    this.artifacts = new Artifacts(folder);
    this.#metricsTail = new LineTail(folder, "metrics.jsonl");
    this.#samplesTail = new LineTail(folder, "samples.jsonl");
  }

  /** Whether anybody has looked: then the indexes follow the files. */
  get isOpen(): boolean {
    return this.#version > 0 || this.#building !== null;
  }
  get version(): number {
    return this.#version;
  }

  /**
   * Brings the indexes up to date; calls `onProgress` after each slice that brought something. Calls at the same time are one. Never throws:
   * a file that cannot be read is one that is not there.
   */
  async update(onProgress: () => void = () => undefined): Promise<void> {
    this.#building ??= this.#readAll(onProgress).finally(() => {
      this.#building = null;
    });
    await this.#building;
  }
  async #readAll(onProgress: () => void): Promise<void> {
    if (this.#version === 0) this.#version = 1;
    for (let more = true; more;) {
      const before = this.#version;
      await this.#metricsTail.warm(4 * sliceBytes);
      more = this.#slice();
      this.#complete ||= !more;
      if (this.#version !== before) onProgress();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  /** Reads for a while; true where there is more. */
  #slice(): boolean {
    const until = performance.now() + sliceMilliseconds;
    let more = true;
    while (more && performance.now() < until) {
      const metrics = this.#metricsTail.read(sliceBytes);
      if (metrics.restarted) this.metrics = new MetricsIndex();
      for (const line of metrics.lines) this.metrics.add(line);
      this.metrics.addTooLong(metrics.numTooLong);
      const samples = this.#samplesTail.read(sliceBytes);
      if (samples.restarted) this.samples = new SamplesIndex();
      for (const line of samples.lines) this.samples.add(line);
      if (metrics.lines.length + metrics.numTooLong + samples.lines.length > 0 || metrics.restarted || samples.restarted) this.#version++;
      more = metrics.more || samples.more;
    }
    return more;
  }

  get index(): IndexState {
    const { metrics } = this;
    return {
      bytes: this.#metricsTail.bytesRead,
      totalBytes: this.#metricsTail.size,
      complete: this.#complete,
      version: this.#version,
      numSteps: metrics.numRows,
      firstStep: metrics.numRows === 0 ? null : metrics.steps.get(0),
      lastStep: metrics.lastStep,
      badLines: metrics.badLines + this.samples.badLines,
      firstProblem: metrics.firstProblem,
    };
  }

  /** Parsed config.json, read again when it changes. */
  #readConfig(): unknown {
    const stat = statInside(this.folder, "config.json");
    const stamp = stat === null ? "none" : `${stat.ino} ${stat.size} ${stat.mtimeMs}`;
    if (stamp !== this.#config.stamp)
      this.#config = { stamp, json: stat === null ? null : (parseJson(readInside(this.folder, "config.json", configBytes) ?? "") ?? null) };
    return this.#config.json;
  }

  summary(): RunSummary {
    const stat = statInside(this.folder, "metrics.jsonl");
    const numSteps = asCount(asObject(this.#readConfig())?.["numSteps"]);
    const { step, loss } = this.#lastRecord(stat);
    const live = isTrained(this.folder);
    const state = live ? "live" : step === null ? "empty" : numSteps !== null && step >= numSteps ? "done" : "stopped";
    return {
      id: this.id,
      name: this.name,
      kind: this.kind,
      state,
      lastStep: step,
      numSteps,
      lastLoss: loss,
      modified: stat?.mtimeMs ?? 0,
    };
  }
  /** Of the newest step record, from the end of the file. */
  #lastRecord(stat: fs.Stats | null): { step: number | null; loss: number | null } {
    const stamp = stat === null ? "none" : `${stat.ino} ${stat.size}`;
    if (stamp === this.#last.stamp) return this.#last;
    this.#last = { stamp, step: null, loss: null };
    for (const line of lastLines(this.folder, "metrics.jsonl", tailBytes).toReversed()) {
      const record = asObject(parseJson(line));
      const step = asCount(record?.["step"]);
      if (record?.["type"] !== "step" || step === null) continue;
      const loss = asNumber(record["loss"]);
      this.#last = { stamp, step, loss: Number.isNaN(loss) ? null : loss };
      break;
    }
    return this.#last;
  }

  detail(): RunDetail {
    const { metrics, samples } = this;
    const config = this.#readConfig();
    const { state } = this.summary();
    const index = this.index;
    return {
      id: this.id,
      name: this.name,
      state,
      index,
      scalars: [...metrics.scalars.keys()],
      layerMetrics: [...metrics.layerMetrics.keys()],
      layers: metrics.layers,
      topK: topKOf(config),
      evaluations: [...metrics.evaluations.keys()],
      similaritySteps: metrics.similarity.map(({ step }) => step),
      sampleSteps: samples.steps,
      prompts: promptsOf(config).slice(0, samples.numPrompts),
      artifacts: this.artifacts.list(),
      forcedBalance: metrics.forcedBalance,
      config: config === null ? null : boundedJson(config, { depth: 8, values: 2000, text: 1000 }),
      problems: index.badLines === 0 ? [] : [`${index.badLines} unreadable lines; the first: ${index.firstProblem ?? "a sample"}`],
    };
  }

  similarityMatrix(step: number, layer: number): SimilarityMatrix | null {
    const point = this.metrics.similarity.find((item) => item.step === step);
    const text = point === undefined ? null : this.#metricsTail.reread(point.line);
    return text === null ? null : similarityMatrix(text, layer);
  }
  sample(step: number, prompt: number): SampleText | null {
    const line = this.samples.find(step, prompt);
    const text = line === null ? null : this.#samplesTail.reread(line);
    return text === null ? null : sampleText(text);
  }
}

/** Experts a token chooses, where the configuration says so in one of its forms. */
function topKOf(config: unknown): number | null {
  const model = asObject(asObject(asObject(config)?.["model"])?.["config"]);
  return asCount(model?.["num_experts_per_tok"]) ?? asCount(model?.["moe_topk"]);
}

/** Whether a process of this machine holds the folder's lock. */
function isTrained(folder: string): boolean {
  const holder = asObject(parseJson(readInside(folder, "lock", 4096) ?? ""));
  const [pid, host] = [asCount(holder?.["pid"]), asText(holder?.["host"])];
  if (pid === null || pid === 0 || host === null) return false;
  return host !== hostname() || isProcessRunning(pid);
}

/** Whole lines among the last `bytes` of a file. */
function lastLines(folder: string, name: string, bytes: number): string[] {
  const opened = openInside(folder, name);
  if (opened === null) return [];
  try {
    const from = Math.max(0, opened.stat.size - bytes);
    const buffer = Buffer.alloc(opened.stat.size - from);
    const count = fs.readSync(opened.fd, buffer, 0, buffer.length, from);
    const lines = buffer.toString("utf8", 0, count).split("\n");
    return from === 0 ? lines : lines.slice(1);
  } catch {
    return [];
  } finally {
    fs.closeSync(opened.fd);
  }
}
