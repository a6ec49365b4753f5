/**
 * Runs the lab: every experiment with every seed, two at a time on one thread each, what others start from first. Each run is a child process
 * of this file; a run that is finished is not repeated, one that was killed goes on from its last checkpoint. Then the report.
 *
 *   node recipes/lab/run.ts [--out runs/lab] [--jobs 2] [--only <experiment>] [--steps n] [--report docs/lab]
 *
 * About an hour on two cores. Results do not depend on the machine's speed, on what else it does, or on the order of runs.
 */
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { loadBackend } from "../../src/backend/load.ts";
import { copyTokenizer, loadTokenizer, writeTokenizerFiles } from "../../src/checkpoint/tokenizer.ts";
import { parseRunConfig } from "../../src/config/run.ts";
import { writeCorpus } from "../../src/quickstart/corpus.ts";
import { Engine } from "../../src/tensor/index.ts";
import { trainByteBpe } from "../../src/tokenizer/train.ts";
import { listCheckpoints, train } from "../../src/train/index.ts";
import { upcycle } from "../../src/upcycle/index.ts";
import { writeFileAtomically } from "../../src/util/files.ts";
import { experiments, runConfigOf, seeds, type Experiment, type Origin } from "./experiments.ts";
import { writeReport } from "./report.ts";

interface Options {
  readonly out: string;
  readonly jobs: number;
  readonly only: string | undefined;
  /** Fewer steps than the lab's: to see that everything runs, not to conclude. */
  readonly steps: number | undefined;
  readonly report: string | undefined;
}

interface Task {
  readonly experiment: Experiment;
  readonly seed: number;
}
const nameOf = ({ experiment, seed }: Task): string => `${experiment.name}-seed${seed}`;

function parsed(): Options & { readonly child: Task | null } {
  const { values } = parseArgs({
    options: {
      out: { type: "string", default: "runs/lab" },
      jobs: { type: "string", default: "2" },
      only: { type: "string" },
      steps: { type: "string" },
      report: { type: "string" },
      child: { type: "string" },
      seed: { type: "string", default: "1" },
    },
  });
  const named = (name: string): Experiment => {
    const found = experiments.find((experiment) => experiment.name === name);
    if (found === undefined) throw new Error(`no experiment "${name}"; there are: ${experiments.map((e) => e.name).join(", ")}`);
    return found;
  };
  if (values.only !== undefined) named(values.only);
  return {
    out: resolve(values.out),
    jobs: Number(values.jobs),
    only: values.only,
    steps: values.steps === undefined ? undefined : Number(values.steps),
    report: values.report,
    child: values.child === undefined ? null : { experiment: named(values.child), seed: Number(values.seed) },
  };
}

/** Text and tokenizer, once for all runs. */
async function prepare({ out }: Options): Promise<void> {
  const tokenizerFolder = join(out, "tokenizer");
  const corpus = writeCorpus(join(out, "data"));
  if (existsSync(join(tokenizerFolder, "tokenizer.json"))) return;
  mkdirSync(tokenizerFolder, { recursive: true });
  const eosToken = "<|endoftext|>";
  writeTokenizerFiles(trainByteBpe(corpus.trainTexts, { vocabSize: 2048, specialTokens: [eosToken], eosToken }), tokenizerFolder);
}

const resultPath = (out: string, task: Task): string => join(out, nameOf(task), "result.json");

/** The checkpoint folder of `step` (null: the last) of another run. */
function checkpointOf(out: string, { run, step }: Origin, seed: number): string {
  const folders = listCheckpoints(join(out, `${run}-seed${seed}`));
  const found = step === null ? folders.at(-1) : folders.find((folder) => folder.endsWith(`step-${String(step).padStart(8, "0")}`));
  if (found === undefined) throw new Error(`${run}, seed ${seed}: no checkpoint of step ${step ?? "(last)"}`);
  return found;
}

/** One run, in this process. */
async function runTask(task: Task, { out, steps }: Options): Promise<void> {
  const { experiment, seed } = task;
  const tokenizer = join(out, "tokenizer");
  let from: string | null = null;
  if ("run" in experiment.model) {
    const dense = checkpointOf(out, experiment.model, seed);
    from = join(out, "upcycled", nameOf(task));
    const loaded = await loadTokenizer(tokenizer);
    if (!existsSync(from)) {
      const { numExperts } = experiment.model;
      upcycle(dense, from, { numExperts, topK: 2, seed }, (folder) => copyTokenizer(tokenizer, folder, loaded));
    }
  }
  const input = runConfigOf(experiment, { seed, from, dataFolder: join(out, "data"), tokenizer });
  const config = parseRunConfig(steps === undefined ? input : { ...input, numSteps: steps }, nameOf(task));
  const runFolder = join(out, nameOf(task));
  using engine = new Engine(await loadBackend({ numThreads: 1 }));
  const resume = listCheckpoints(runFolder).length > 0;
  const { evaluations, state, folder } = await train({ engine, config, runFolder, resume });
  writeFileAtomically(
    resultPath(out, task),
    `${JSON.stringify({ experiment: experiment.name, seed, evaluations, state, folder }, null, 2)}\n`,
  );
}

async function inChild(task: Task, options: Options): Promise<void> {
  const args = [import.meta.filename, "--out", options.out, "--child", task.experiment.name, "--seed", String(task.seed)];
  if (options.steps !== undefined) args.push("--steps", String(options.steps));
  const started = performance.now();
  const child = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
  let errors = "";
  child.stderr.on("data", (chunk: Buffer) => (errors = (errors + chunk.toString()).slice(-4000)));
  const code = await new Promise<number | null>((done) => child.on("exit", done));
  if (code !== 0) throw new Error(`${nameOf(task)} ended with ${code}\n${errors}`);
  const { evaluations } = JSON.parse(readFileSync(resultPath(options.out, task), "utf8")) as {
    evaluations: Record<string, { loss: number }>;
  };
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.error(`${nameOf(task)}: validation loss ${evaluations["validation"]?.loss.toFixed(4)}, ${seconds} s`);
}

/** All tasks, `jobs` at a time; one waits until what it starts from is there. */
async function runAll(options: Options): Promise<void> {
  const isDone = (task: Task): boolean => existsSync(resultPath(options.out, task));
  const waiting = experiments
    .filter(({ name }) => options.only === undefined || name === options.only)
    .flatMap((experiment) => seeds.map((seed): Task => ({ experiment, seed })))
    .filter((task) => !isDone(task));
  const isReady = ({ experiment: { model }, seed }: Task): boolean => {
    const needed = "run" in model ? experiments.find(({ name }) => name === model.run) : undefined;
    return needed === undefined || isDone({ experiment: needed, seed });
  };
  console.error(`${waiting.length} runs to do`);
  const worker = async (): Promise<void> => {
    for (;;) {
      const next = waiting.findIndex(isReady);
      const [task] = next < 0 ? [] : waiting.splice(next, 1);
      if (task === undefined) return;
      await inChild(task, options);
    }
  };
  await Promise.all(Array.from({ length: options.jobs }, worker));
  if (waiting.length > 0) throw new Error(`runs without what they start from: ${waiting.map(nameOf).join(", ")}`);
}

const options = parsed();
if (options.child === null) {
  await prepare(options);
  await runAll(options);
  if (options.report !== undefined) await writeReport(options.out, options.report);
} else await runTask(options.child, options);
