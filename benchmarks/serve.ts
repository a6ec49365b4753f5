/**
 * Rows `serve.throughput` and `serve.ttft`: `moe serve` beside llama-server, both as processes that were started by their commands, the
 * model of `fp8-model.ts` in each, 16 slots each, and one client program (this) that asks both for the same.
 *
 * A sample: 16 clients at once, each with one request over HTTP with streaming: a prompt of 128 tokens that
 * nobody asked before (so that no cache of prompts helps), 128 tokens of greedy output, end tokens passed over. Throughput is the output tokens
 * of all requests over the time from the first request to the last token; time to first token is the median over all requests of the
 * time from sending the request to the first text. One server works at a time; the other waits without computing.
 *
 * llama-server answers shorter requests with 1 and with 2 threads at first; who is far slower takes no further part.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { loadTokenizer } from "../src/checkpoint/tokenizer.ts";
import { writeCorpus } from "../src/quickstart/corpus.ts";
import { messageOf, wants, type Context } from "./context.ts";
import { fp8Model, llamaProgram, q8Model, upcycledModel } from "./fp8-model.ts";
import { interleave, median, type Row } from "./measure.ts";
import { cacheFolder } from "./process.ts";

const throughputBar = 2;
const ttftBar = 0.5;
const modelName = "bench";
const numClients = 16;
const promptTokens = 128;
/** What a client asks for in a sample. A sample takes up to a minute of the rival: three must do, and one with `--quick`. */
const whole = { requestsEach: 1, outputTokens: 128 } as const;
const numSamples = 3;
/** What decides which numbers of threads are worth measuring, and warms up. */
const first = { requestsEach: 1, outputTokens: 16 } as const;
const hopeless = 1.3;
const readyMs = 120_000;

export const serveNames = ["serve.throughput", "serve.ttft"] as const;

/** A server's process that answers at `url`. */
class ServerProcess implements AsyncDisposable {
  readonly url: string;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, url: string) {
    this.#child = child;
    this.url = url;
  }
  /** Starts a program and waits until `/health` says that it is ready. Throws with the end of its log otherwise. */
  static async start(command: string, args: readonly string[], port: number): Promise<ServerProcess> {
    const child = spawn(command, [...args, "--port", String(port)], { stdio: ["ignore", "pipe", "pipe"] });
    let log = "";
    for (const stream of [child.stdout, child.stderr])
      stream.on("data", (chunk: Buffer) => {
        log = (log + chunk.toString()).slice(-2000);
      });
    const server = new ServerProcess(child, `http://127.0.0.1:${port}`);
    for (const end = Date.now() + readyMs; Date.now() < end; await sleep(100)) {
      if (child.exitCode !== null || child.signalCode !== null)
        throw new Error(`${command} ended with ${child.signalCode ?? child.exitCode}: ${log.trim().split("\n").at(-1) ?? ""}`);
      const answer = await fetch(`${server.url}/health`).catch(() => null);
      if (answer?.ok === true) return server;
    }
    await server[Symbol.asyncDispose]();
    throw new Error(`${command}: not ready after ${readyMs / 1000} s`);
  }
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill("SIGKILL");
    await ended;
  }
}

async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((done) => probe.listen(0, "127.0.0.1", done));
  const { port } = probe.address() as AddressInfo;
  await new Promise((done) => probe.close(done));
  return port;
}

/** Prompts of the corpus, none twice. */
class Prompts {
  readonly #ids: Int32Array;
  #at = 0;
  constructor(ids: Int32Array) {
    this.#ids = ids;
  }
  static async open(model: string): Promise<Prompts> {
    const { validationPath } = writeCorpus(join(cacheFolder(), "sotu"));
    const texts = readFileSync(validationPath, "utf8").trim().split("\n");
    const text = texts.map((line) => (JSON.parse(line) as { text: string }).text).join("\n\n");
    return new Prompts((await loadTokenizer(model)).encode(text));
  }
  next(): number[] {
    const from = this.#at;
    this.#at += promptTokens;
    if (this.#at > this.#ids.length) throw new Error("serve: the corpus has no more prompts");
    return [...this.#ids.subarray(from, this.#at)];
  }
}

interface Answered {
  readonly firstMs: number;
  readonly tokens: number;
}

/** One streamed completion. Throws where the server answers with an error or with another number of tokens. */
async function complete(url: string, prompt: readonly number[], outputTokens: number): Promise<Answered> {
  const started = performance.now();
  const body = { model: modelName, prompt, max_tokens: outputTokens, temperature: 0, ignore_eos: true, stream: true };
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream_options: { include_usage: true } }),
  });
  if (!response.ok || response.body === null) throw new Error(`${url}: ${response.status} ${await response.text()}`);
  let firstMs = Number.NaN;
  let tokens = 0;
  let rest = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6)) as {
        choices?: { text?: string }[];
        usage?: { prompt_tokens: number; completion_tokens: number } | null;
      };
      if (Number.isNaN(firstMs) && (event.choices?.[0]?.text ?? "") !== "") firstMs = performance.now() - started;
      if (event.usage !== undefined && event.usage !== null) tokens = event.usage.completion_tokens;
    }
  }
  if (tokens !== outputTokens) throw new Error(`${url}: expected ${outputTokens} tokens, got ${tokens}`);
  return { firstMs, tokens };
}

interface Load {
  /** Output tokens a second. */
  readonly rate: number;
  /** Median time to the first token. */
  readonly ttftMs: number;
}

async function load(url: string, prompts: Prompts, { requestsEach, outputTokens }: typeof whole | typeof first): Promise<Load> {
  const work = Array.from({ length: numClients }, () => Array.from({ length: requestsEach }, () => prompts.next()));
  const started = performance.now();
  const answers = await Promise.all(
    work.map(async (own) => {
      const done: Answered[] = [];
      for (const prompt of own) done.push(await complete(url, prompt, outputTokens));
      return done;
    }),
  );
  const seconds = (performance.now() - started) / 1000;
  const all = answers.flat();
  return { rate: all.reduce((sum, { tokens }) => sum + tokens, 0) / seconds, ttftMs: median(all.map(({ firstMs }) => firstMs)) };
}

async function startOurs(): Promise<ServerProcess> {
  const { path } = await fp8Model();
  const command = join(import.meta.dirname, "..", "src", "cli", "main.ts");
  const args = ["--name", modelName, "--max-batch", String(numClients), "--max-context", String(2 * (promptTokens + whole.outputTokens))];
  return ServerProcess.start(process.execPath, [command, "serve", path, ...args], await freePort());
}

async function startLlama(threads: number): Promise<ServerProcess> {
  const context = numClients * 2 * (promptTokens + whole.outputTokens);
  const counts = ["-np", String(numClients), "-c", String(context), "-t", String(threads), "-tb", String(threads)];
  return ServerProcess.start(llamaProgram("llama-server"), ["-m", await q8Model(), ...counts, "--host", "127.0.0.1"], await freePort());
}

/** Rates and times of both sides, taking turns. */
async function measureBoth({ effort, log }: Context): Promise<{ ours: Load[]; theirs: { threads: number; loads: Load[] }[] }> {
  await using stack = new AsyncDisposableStack();
  const prompts = await Prompts.open(await upcycledModel());
  const llamas: { threads: number; url: string; rate: number }[] = [];
  for (const threads of [1, 2]) {
    const { url } = stack.use(await startLlama(threads));
    llamas.push({ threads, url, rate: (await load(url, prompts, first)).rate });
    log(`llama-server, ${threads} threads: ${llamas.at(-1)?.rate.toFixed(0)} tokens/s`);
  }
  const best = Math.max(...llamas.map(({ rate }) => rate));
  const kept = llamas.filter(({ rate }) => rate * hopeless > best);
  const ours = stack.use(await startOurs());
  const loads = [ours, ...kept].map((): Load[] => []);
  const sides = [ours, ...kept].map(({ url }, side) => ({
    sample: async (): Promise<number> => loads[side]?.push(await load(url, prompts, whole)) ?? 0,
  }));
  // The rival had its warm-up when its threads were tried.
  await load(ours.url, prompts, first);
  await interleave(sides, { samples: Math.min(numSamples, Math.ceil(effort.samples / 3)), warmups: 0 });
  return { ours: loads[0] ?? [], theirs: kept.map(({ threads }, i) => ({ threads, loads: loads[i + 1] ?? [] })) };
}

function serveRow(name: (typeof serveNames)[number], { ours, theirs }: Awaited<ReturnType<typeof measureBoth>>): Row {
  const isRate = name === "serve.throughput";
  const of = (loads: readonly Load[]): number[] => loads.map(({ rate, ttftMs }) => (isRate ? rate : ttftMs));
  // Whose throughput is best is the rival in both rows.
  const rateOf = (loads: readonly Load[]): number => median(loads.map(({ rate }) => rate));
  const rival = theirs.toSorted((a, b) => rateOf(b.loads) - rateOf(a.loads))[0];
  return {
    name,
    ours: of(ours),
    rival: of(rival?.loads ?? []),
    unit: isRate ? "tokens/s" : "ms",
    bar: isRate ? throughputBar : ttftBar,
    others: Object.fromEntries(theirs.map(({ threads, loads }) => [`llama-server, ${threads} threads`, of(loads)])),
    note: `${numClients} clients, ${promptTokens} tokens in, ${whole.outputTokens} out`,
  };
}

/** Rows `serve.throughput` and `serve.ttft`, of the same samples; empty, with the reason, where llama.cpp is not there. */
export async function* serveRows(context: Context): AsyncGenerator<Row> {
  const names = serveNames.filter((name) => wants(context, name));
  if (names.length === 0) return;
  try {
    llamaProgram("llama-server");
  } catch (error) {
    for (const name of names)
      yield { name, ours: [], rival: [], unit: "tokens/s", bar: null, note: `the rival does not run: ${messageOf(error)}` };
    return;
  }
  const measured = await measureBoth(context);
  for (const name of names) yield serveRow(name, measured);
}
