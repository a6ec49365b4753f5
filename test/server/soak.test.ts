/**
 * Many clients at once against `moe serve` as a process of its own: random lengths, streams, aborts and bad requests among them. Every greedy answer equals
 * the one that the same request gets alone, log-probabilities bit for bit, and afterwards nothing is left: no answer under way, no block in use, no
 * tensor's bytes more than before, and resident memory that stays where it was. /health is asked all the while. 16 clients for 20 s by default; 32 for 10 minutes
 * with MOE_LONG=1, which prints what it saw.
 */
import { spawn, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Random } from "../../src/util/random.ts";
import { errorOf, post, removeFolder, until, writeTinyModel } from "./harness.ts";

const isLong = process.env["MOE_LONG"] === "1";
const numClients = isLong ? 32 : 16;
const seconds = isLong ? 600 : 20;
const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));

let folder = "";
let child: ChildProcess;
let url = "";
let errors = "";
beforeAll(async () => {
  folder = await writeTinyModel({ numLayers: 4 });
  // 1 MiB is 32 blocks of 64 tokens in four layers: too small for all, so that sequences lose their places and begin again.
  const options = ["--port", "0", "--max-batch", "24", "--max-queue", "200", "--kv-memory", "1", "--json-logs"];
  child = spawn(process.execPath, [main, "serve", folder, ...options], { stdio: ["ignore", "ignore", "pipe"] });
  child.stderr?.on("data", (data: Buffer) => {
    for (const line of data.toString().split("\n")) {
      url ||= /serving at (http:\/\/[\d.]+:\d+)/.exec(line)?.[1] ?? "";
      if (line.includes('"level":"error"')) errors += `${line}\n`;
    }
  });
  await until(() => url !== "" || child.exitCode !== null, 90);
}, 120_000);
afterAll(() => {
  child.kill("SIGKILL");
  removeFolder(folder);
});

interface Request {
  readonly prompt: readonly number[];
  readonly max_tokens: number;
  readonly temperature: 0;
  readonly ignore_eos: true;
  readonly logprobs?: number;
}
const random = new Random(17);
const pool: readonly Request[] = Array.from({ length: isLong ? 48 : 16 }, (_, i) => {
  // Beginnings are shared by some, and longer than a block.
  const prompt = Array.from({ length: (i % 2 === 0 ? 1 : 250) + random.integer(170) }, (__, at) =>
    i % 4 === 3 ? (7 * at) % 1200 : random.integer(1200),
  );
  const request = { prompt, max_tokens: 1 + random.integer(90), temperature: 0, ignore_eos: true } as const;
  return i % 3 === 0 ? { ...request, logprobs: 2 } : request;
});

/**
 * The choices of an answer, as they came: `JSON.parse` of Node 26.10 takes a key "\u0012" for "\\" where it saw such an object with that key before, and
 * tokens are keys of log-probabilities.
 */
async function answerTo(request: Request): Promise<string> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request),
  });
  const text = await response.text();
  const [, choices] = /"choices":(\[.*\]),"usage":/s.exec(text) ?? [];
  if (response.status !== 200 || choices === undefined) throw new Error(text);
  return choices;
}
async function streamedText(request: Request): Promise<string> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...request, stream: true }),
  });
  const events = (await response.text()).split("\n\n").filter((event) => event.startsWith("data: {"));
  return events.map((event) => (JSON.parse(event.slice(6)) as { choices: { text: string }[] }).choices[0]?.text ?? "").join("");
}
async function abandoned(request: Request, afterMs: number): Promise<void> {
  const controller = new AbortController();
  setTimeout(() => controller.abort(), afterMs);
  await post({ url }, "/v1/completions", { ...request, max_tokens: 200 }, { signal: controller.signal }).catch(() => undefined);
}
const badRequests = ['{"prompt": ', '{"prompt": [99999]}', '{"prompt": "a", "n": -1}', JSON.stringify({ prompt: "word ".repeat(2000) })];

async function metrics(): Promise<(name: string) => number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return (name) => Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1] ?? Number.NaN);
}
async function settled(): Promise<(name: string) => number> {
  // Counters are a tenth of a second old at most.
  await new Promise((done) => setTimeout(done, 300));
  await until(async () => {
    const metric = await metrics();
    return metric("moe_requests_running") + metric("moe_requests_waiting") === 0;
  });
  await new Promise((done) => setTimeout(done, 300));
  return metrics();
}
const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
const quantile = (values: readonly number[], q: number): number =>
  values.toSorted((a, b) => a - b)[Math.floor(q * (values.length - 1))] ?? 0;

test(`${numClients} clients for ${seconds} s get the answers that each would get alone`, { timeout: (seconds + 180) * 1000 }, async () => {
  const alone: string[] = [];
  for (const request of pool) alone.push(await answerTo(request));
  // The model's table of rotations grows with the longest text: once to its end.
  await answerTo({ prompt: [1, 2, 3], max_tokens: 1000, temperature: 0, ignore_eos: true });
  const before = await settled();
  const [rss, health] = [[] as number[], [] as number[]];
  const end = performance.now() + seconds * 1000;
  const counts = { answers: 0, streamed: 0, abandoned: 0, refused: 0 };
  const client = async (number: number): Promise<void> => {
    const own = new Random(number);
    while (performance.now() < end) {
      const which = own.integer(pool.length);
      const request = pool[which];
      if (request === undefined) return;
      const kind = own.uniform();
      if (kind < 0.15) {
        await abandoned(request, own.integer(60));
        counts.abandoned++;
      } else if (kind < 0.25) {
        const bad = badRequests[own.integer(badRequests.length)] ?? "";
        expect(errorOf(await post({ url }, "/v1/completions", bad)).status).toBe(400);
        counts.refused++;
      } else if (kind < 0.5) {
        expect(await streamedText(request)).toBe((JSON.parse(alone[which] ?? "") as { text: string }[])[0]?.text);
        counts.streamed++;
      } else {
        expect(await answerTo(request)).toBe(alone[which]);
        counts.answers++;
      }
    }
  };
  const watch = async (): Promise<void> => {
    for (let n = 0; performance.now() < end; n++) {
      const started = performance.now();
      expect((await fetch(`${url}/health`)).status).toBe(200);
      health.push(performance.now() - started);
      if (n % 10 === 0) rss.push((await metrics())("moe_process_resident_memory_bytes"));
      await new Promise((done) => setTimeout(done, 100));
    }
  };
  await Promise.all([watch(), ...Array.from({ length: numClients }, (_, number) => client(number))]);
  const after = await settled();
  const difference = (name: string): number => after(name) - before(name);
  // Idle blocks keep beginnings; what is used is nobody's any more.
  expect(after("moe_kv_cache_usage_ratio")).toBe(0);
  expect(difference("moe_tensor_bytes")).toBe(0);
  for (const count of Object.values(counts)) expect(count).toBeGreaterThan(numClients / 4);
  // The small cache was felt, and kept beginnings were used.
  expect(difference("moe_preemptions_total")).toBeGreaterThan(0);
  expect(difference("moe_prefix_cache_hit_tokens_total")).toBeGreaterThan(0);
  expect(errors).toBe("");
  const quarter = Math.floor(rss.length / 4);
  const [second, last] = [mean(rss.slice(quarter, 2 * quarter)), mean(rss.slice(-quarter))];
  // The heap breathes, but does not grow.
  expect(last).toBeLessThan(second * (isLong ? 1.05 : 1.3));
  if (isLong) {
    const figures = {
      ...counts,
      generatedTokens: difference("moe_generated_tokens_total"),
      computedTokens: difference("moe_computed_tokens_total"),
      preemptions: difference("moe_preemptions_total"),
      prefixHitTokens: difference("moe_prefix_cache_hit_tokens_total"),
      rssMiB: {
        first: Math.round(mean(rss.slice(0, quarter)) / 2 ** 20),
        second: Math.round(second / 2 ** 20),
        last: Math.round(last / 2 ** 20),
      },
      healthMs: { median: quantile(health, 0.5), p99: quantile(health, 0.99), most: Math.max(...health) },
    };
    process.stdout.write(`soak: ${JSON.stringify(figures)}\n`);
  }
});
