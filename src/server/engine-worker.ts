/**
 * The thread that computes: opens the model, runs an `EngineHost` until it is told to stop, and frees everything. Kernels are called
 * synchronously here, for milliseconds to seconds; the event loop that answers HTTP is another thread's.
 */
import { serialize } from "node:v8";
import { parentPort, workerData } from "node:worker_threads";
import { loadBackend } from "../backend/load.ts";
import { loadTokenizer } from "../checkpoint/tokenizer.ts";
import { loadModel } from "../model/index.ts";
import { MpiWorld, startRanks, threadsPerRank, type Launcher } from "../parallel/index.ts";
import { ServingEngine } from "../serve/index.ts";
import { Engine } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { EngineHost } from "./engine-host.ts";
import { drafterOf, loadOptions, modelInfo, openDraftModel, planServing, servingOptions } from "./engine-open.ts";
import { runServingRank, servingJob } from "./serving-rank.ts";
import type { EngineSettings, FromEngine, TensorParallelSettings, ToEngine } from "./protocol.ts";

function post(message: FromEngine): void {
  parentPort?.postMessage(message, []);
}

async function serve(settings: EngineSettings): Promise<void> {
  const tokenizer = await loadTokenizer(settings.modelPath);
  using engine = new Engine(await loadBackend());
  using model = loadModel(engine, settings.modelPath, loadOptions(settings));
  const options = servingOptions(model.config, settings, model.dtype);
  using draft = openDraftModel(engine, settings, model.config);
  using serving = new ServingEngine(model, tokenizer, { ...options, ...drafterOf(settings, draft, options, model.config) });
  const host = new EngineHost(serving, post);
  parentPort?.on("message", (message: ToEngine) => {
    host.receive(message);
  });
  post({ type: "ready", info: modelInfo(serving, options.cacheBytes) });
  await host.run();
}

/** The model cut over ranks, which are threads of their own: this one hands messages on. */
async function serveOnRanks(settings: EngineSettings, tp: TensorParallelSettings): Promise<void> {
  const group = startRanks({
    size: tp.ranks,
    entry: new URL(`./engine-rank${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`, import.meta.url),
    data: servingJob(settings, planServing(settings, tp)),
    onMessage: (_, message) => {
      post(message as FromEngine);
    },
  });
  parentPort?.on("message", (message: ToEngine) => {
    group.post(0, message);
  });
  await group.results;
}

/** The same with ranks that are processes: this thread is the first of them. */
async function serveOverProcesses(settings: EngineSettings, tp: TensorParallelSettings, launcher: Launcher): Promise<void> {
  const job = servingJob(settings, planServing(settings, tp));
  const world = await MpiWorld.start(launcher);
  try {
    using engine = new Engine(await loadBackend(process.env["MOE_THREADS"] ? {} : { numThreads: threadsPerRank(launcher) }));
    const communicator = world.communicator(engine.backend);
    communicator.share(serialize(job), 0);
    const listen = (receive: (message: ToEngine) => void): void => void parentPort?.on("message", receive);
    await runServingRank(engine, communicator, job, { post, listen });
    world.finish();
  } catch (error) {
    // The others end by this; who is told of it over HTTP is the main thread's matter.
    world.abort(error instanceof Error ? error.message : String(error));
    throw error;
  }
}

async function main(): Promise<void> {
  try {
    const settings = workerData as EngineSettings;
    const { tp = null } = settings;
    if (tp === null) await serve(settings);
    else if (tp.launcher) await serveOverProcesses(settings, tp, tp.launcher);
    else await serveOnRanks(settings, tp);
  } catch (error) {
    const isExpected = error instanceof MoeError && error.kind !== "internal";
    const message = error instanceof Error ? (isExpected ? error.message : (error.stack ?? error.message)) : String(error);
    post({ type: "fatal", message, exitCode: error instanceof MoeError ? error.exitCode : 1 });
  }
  parentPort?.close();
}

await main();
