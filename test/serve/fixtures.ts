/** A small model with experts, a tokenizer of letters, and requests run to their end: for the tests of the serving engine. */
import { loadBackend } from "../../src/backend/load.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../../src/config/model.ts";
import { Decoder } from "../../src/model/index.ts";
import type { GenerationEvent, GenerationRequest, ServingEngine, TokenLogprobs } from "../../src/serve/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import type { Tokenizer } from "../../src/tokenizer/tokenizer.ts";

export const vocabSize = 128;

/** Id = character code; 0 ends. */
export const letters = {
  vocabSize,
  endIds: new Set<number>([0]),
  encode: (text: string) => Int32Array.from(text, (c) => c.charCodeAt(0)),
  decode: (ids: ArrayLike<number>) => Array.from(ids, (id) => String.fromCharCode(id)).join(""),
  createDecodeStream: () => ({ push: (id: number) => String.fromCharCode(id), end: () => "" }),
  idToBytes: (id: number) => Uint8Array.of(id),
  specialTokens: new Map([["\0", 0]]),
} as unknown as Tokenizer;

export async function openModel({
  dtype = "f32",
  seed = 5,
  numLayers = 2,
}: { dtype?: "f32" | "bf16"; seed?: number; numLayers?: number } = {}) {
  const engine = new Engine(await loadBackend({ numThreads: 2 }));
  const size = { hiddenSize: 24, ffnSize: 32, numHeads: 4, numKvHeads: 2, headDim: 6, maxPositions: 2000, initStd: 0.4 };
  const moe = { ...plainRouting, numExperts: 4, topK: 2, expertFfnSize: 32 };
  const ids = { bosTokenId: null, eosTokenIds: [0], padTokenId: null };
  const config: ModelConfig = { ...modelPresets.quickstart, ...size, ...ids, architecture: "mixtral", numLayers, vocabSize, moe };
  const model = Decoder.initialize(engine, config, { dtype, seed });
  return { engine, model };
}

/** What one choice came to, by its events. */
export interface ChoiceResult {
  readonly ids: number[];
  text: string;
  readonly logprobs: TokenLogprobs[];
  reason: string;
  error: Error | null;
}
export interface RequestResult {
  readonly choices: ChoiceResult[];
  readonly events: GenerationEvent[];
  prompt: readonly TokenLogprobs[];
  ended: boolean;
}

/** Queues a request and collects its events. */
export function collect(serving: ServingEngine, request: GenerationRequest): { id: number; result: RequestResult } {
  const choices = Array.from({ length: request.n ?? 1 }, (): ChoiceResult => ({
    ids: [],
    text: "",
    logprobs: [],
    reason: "",
    error: null,
  }));
  const result: RequestResult = { choices, events: [], prompt: [], ended: false };
  const id = serving.submit(request, (event) => {
    if (result.ended) throw new Error(`event ${event.type} after the end`);
    result.events.push(event);
    if (event.type === "prompt") result.prompt = event.logprobs;
    else if (event.type === "end") result.ended = true;
    else {
      const choice = choices[event.choice];
      if (choice === undefined || choice.reason !== "") throw new Error(`event of choice ${event.choice} out of order`);
      choice.text += event.text;
      if (event.type === "token") {
        choice.ids.push(event.id);
        if (event.logprobs !== null) choice.logprobs.push(event.logprobs);
      } else {
        choice.reason = event.reason;
        choice.error = event.error;
      }
    }
  });
  return { id, result };
}
/** Steps until nothing is left. */
export function drain(serving: ServingEngine, maxSteps = 5000): number {
  let steps = 0;
  while (serving.hasWork) {
    if (!serving.step() || ++steps > maxSteps) throw new Error(`the engine makes no progress after ${steps} steps`);
  }
  return steps;
}
