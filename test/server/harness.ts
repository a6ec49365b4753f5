/** Tiny models in folders and servers of them, for tests of the server. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadBackend } from "../../src/backend/load.ts";
import { writeTokenizerFiles } from "../../src/checkpoint/tokenizer.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { plainRouting } from "../../src/config/model.ts";
import { Decoder, saveModel } from "../../src/model/index.ts";
import { startServer, type Limits, type LogEntry, type RunningServer, type ServeOptions } from "../../src/server/index.ts";
import { Engine } from "../../src/tensor/index.ts";

export const chatTemplate =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
export const hiddenSize = 32;
export const maxPositions = 512;

/** Writes a model of 8 experts in each of two layers, with random weights and a real tokenizer. Its folder is the caller's. */
export async function writeTinyModel({
  template = chatTemplate,
  numLayers = 2,
  vocabSize = 1200,
}: { readonly template?: string | null; readonly numLayers?: number; readonly vocabSize?: number } = {}): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "moe-server-"));
  const size = { vocabSize, hiddenSize, ffnSize: 24, numLayers, numHeads: 2, numKvHeads: 1, headDim: 16, maxPositions };
  const moe = { ...plainRouting, numExperts: 8, topK: 2, expertFfnSize: 24 };
  using engine = new Engine(await loadBackend({ numThreads: 1 }));
  using model = Decoder.initialize(
    engine,
    { ...modelPresets["mixtral-8x7b"], ...size, moe, initStd: 0.2, bosTokenId: null, eosTokenIds: [], padTokenId: null },
    { dtype: "f32", seed: 3 },
  );
  saveModel(model, folder);
  const fixture = new URL("../golden/tokenizer/hf-smollm.tokenizer.json", import.meta.url);
  const tokenizerConfig = { eos_token: "<|im_end|>", ...(template === null ? {} : { chat_template: template }) };
  writeTokenizerFiles({ tokenizerJson: JSON.parse(readFileSync(fixture, "utf8")) as unknown, tokenizerConfig }, folder);
  return folder;
}
export function removeFolder(folder: string): void {
  rmSync(folder, { recursive: true, force: true });
}

export interface TestServer extends RunningServer {
  readonly log: readonly LogEntry[];
}

/** A server named "tiny" on a free port. */
export async function serveTiny(
  folder: string,
  limits: Partial<Limits> = {},
  options: Partial<Pick<ServeOptions, "apiKey" | "onDeath" | "cacheBytes" | "cacheDtype" | "speculate" | "draftModel" | "tp">> = {},
): Promise<TestServer> {
  const log: LogEntry[] = [];
  const server = await startServer({
    modelPath: folder,
    modelName: "tiny",
    dtype: null,
    cacheDtype: null,
    maxContext: null,
    cacheBytes: null,
    speculate: null,
    host: "127.0.0.1",
    port: 0,
    apiKey: null,
    version: "0",
    log: { write: (entry) => void log.push(entry) },
    limits,
    ...options,
  });
  return { ...server, log };
}

export interface Reply {
  readonly status: number;
  readonly body: Record<string, unknown>;
  readonly headers: Headers;
}
export async function post(server: Pick<RunningServer, "url">, path: string, body: unknown, init: RequestInit = {}): Promise<Reply> {
  const isRaw = typeof body === "string" || body instanceof Uint8Array;
  const response = await fetch(`${server.url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: isRaw ? body : JSON.stringify(body),
    ...init,
  });
  const text = await response.text();
  return { status: response.status, body: JSON.parse(text) as Record<string, unknown>, headers: response.headers };
}
/** The `error` of a reply in OpenAI's shape; throws where it has another. */
export function errorOf({ status, body }: Reply): {
  status: number;
  message: string;
  type: string;
  param: string | null;
  code: string | null;
} {
  const { error } = body as { error?: Record<string, unknown> };
  const shape = Object.entries(error ?? {}).map(([key, value]) => `${key} ${value === null ? "null" : typeof value}`);
  const expected = [/^message string$/, /^type string$/, /^param (null|string)$/, /^code (null|string)$/];
  if (shape.length !== 4 || !expected.every((pattern, i) => pattern.test(shape[i] ?? "")))
    throw new Error(`expected an error in OpenAI's shape, got status ${status} and ${JSON.stringify(body).slice(0, 300)}`);
  return { status, ...(error as { message: string; type: string; param: string | null; code: string | null }) };
}

/** Waits until `check` holds, some seconds at most. */
export async function until(check: () => boolean | Promise<boolean>, seconds = 20): Promise<void> {
  const end = performance.now() + seconds * 1000;
  while (!(await check())) {
    if (performance.now() > end) throw new Error(`not within ${seconds} s: ${check.toString()}`);
    await new Promise((done) => setTimeout(done, 10));
  }
}
