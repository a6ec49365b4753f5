import { afterAll, afterEach, expect, test } from "vitest";
import { loadBackend } from "../backend/load.ts";
import { modelPresets } from "../config/model-presets.ts";
import { Decoder } from "../model/index.ts";
import { ServingEngine } from "../serve/index.ts";
import { Engine } from "../tensor/index.ts";
import { trainByteBpe } from "../tokenizer/train.ts";
import { buildHuggingFaceTokenizer } from "../tokenizer/huggingface.ts";
import { EngineHost } from "./engine-host.ts";
import type { FromEngine, GenerateTask, TaskEvent } from "./protocol.ts";
import { taskOf } from "./tasks.ts";

const engine = new Engine(await loadBackend({ numThreads: 1 }));
const tokenizer = buildHuggingFaceTokenizer(
  trainByteBpe(["hello there, how are you? fine."], { vocabSize: 270, specialTokens: ["<end>"], eosToken: "<end>" }),
);
const size = {
  vocabSize: 272,
  hiddenSize: 16,
  ffnSize: 16,
  numLayers: 1,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 8,
  maxPositions: 256,
  initStd: 0.4,
};
const model = Decoder.initialize(
  engine,
  { ...modelPresets.quickstart, ...size, bosTokenId: null, eosTokenIds: [], padTokenId: null },
  { dtype: "f32", seed: 5 },
);
let serving: ServingEngine | null = null;
afterEach(() => {
  serving?.[Symbol.dispose]();
});
afterAll(() => {
  model[Symbol.dispose]();
  expect(engine.backend.liveBytes).toBe(0);
  engine[Symbol.dispose]();
});

function startHost(): {
  host: EngineHost;
  engine: ServingEngine;
  messages: FromEngine[];
  eventsOf: (id: number) => TaskEvent[];
  end: () => Promise<void>;
} {
  const own = new ServingEngine(model, tokenizer, { cacheBytes: 1 << 20 });
  serving = own;
  const messages: FromEngine[] = [];
  const host = new EngineHost(own, (message) => void messages.push(message));
  const running = host.run();
  const eventsOf = (id: number): TaskEvent[] =>
    messages
      .flatMap((message) => (message.type === "events" ? message.events : []))
      .flatMap((entry) => (entry.id === id ? [entry.event] : []));
  const end = (): Promise<void> => {
    host.receive({ type: "shutdown" });
    return running;
  };
  return { host, engine: own, messages, eventsOf, end };
}
function task(change: Partial<GenerateTask> = {}): GenerateTask {
  return { ...taskOf({ kind: "ids", ids: [40, 41, 42] }, 100, { temperature: 0, ignore_eos: true }, () => 0), ...change };
}
async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((turn) => setImmediate(turn));
}

test("an aborted request is gone before the next step", async () => {
  const { host, engine: own, end } = startHost();
  host.receive({ type: "generate", id: 1, task: task() });
  host.receive({ type: "generate", id: 2, task: task({ n: 2 }) });
  await turns(6);
  expect(own.stats().running).toBe(3);
  host.receive({ type: "abort", id: 2 });
  expect(own.stats().running).toBe(1);
  host.receive({ type: "abort", id: 1 });
  const { steps, running, blocksUsed } = own.stats();
  expect([running, blocksUsed]).toEqual([0, 0]);
  await turns(6);
  expect(own.stats().steps).toBe(steps);
  await end();
});

test("what is wrong with a task is its own failure, and others go on", async () => {
  const { host, eventsOf, end } = startHost();
  host.receive({ type: "generate", id: 1, task: task({ prompt: { kind: "ids", ids: [999] } }) });
  host.receive({ type: "generate", id: 2, task: task({ maxTokens: 3 }) });
  host.receive({ type: "generate", id: 3, task: task({ format: { kind: "json-schema", schema: { type: "colour" } } }) });
  host.receive({ type: "generate", id: 4, task: task({ prompt: { kind: "text", text: "", addSpecialTokens: false } }) });
  await turns(20);
  for (const id of [1, 3, 4]) expect(eventsOf(id)).toMatchObject([{ type: "failed", error: { status: 400 } }]);
  expect(eventsOf(2).map(({ type }) => type)).toEqual(["accepted", "token", "token", "token", "finish", "end"]);
  await end();
});

test("who asks for one token with log-probabilities gets one, also where it is an end token", async () => {
  const { host, eventsOf, end } = startHost();
  const endId = tokenizer.eosId ?? -1;
  const sampling = { ...task().sampling, logitBias: [[endId, 100]] as const };
  host.receive({ type: "generate", id: 1, task: task({ ignoreEnd: false, maxTokens: 1, logprobs: 0, sampling }) });
  host.receive({ type: "generate", id: 2, task: task({ ignoreEnd: false, maxTokens: 5, logprobs: 0, sampling }) });
  await turns(20);
  expect(eventsOf(1)).toMatchObject([
    { type: "accepted" },
    { type: "token", text: "", logprobs: { id: endId } },
    { type: "finish", reason: "stop", stoppedBy: endId, text: "" },
    { type: "end" },
  ]);
  expect(eventsOf(2)).toMatchObject([{ type: "accepted" }, { type: "finish", reason: "stop", stoppedBy: endId }, { type: "end" }]);
  await end();
});
