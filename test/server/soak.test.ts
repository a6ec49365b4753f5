/**
 * Many clients at once: random lengths, streams, aborts and bad requests among them. Every greedy answer equals the one that the same request
 * gets alone, bit for bit, and afterwards nothing is left: no answer under way, no block in use, no bytes more than before. Short by
 * default; 32 clients for 10 minutes with MOE_LONG=1.
 */
import { afterAll, beforeAll, expect, test } from "vitest";
import { Random } from "../../src/util/random.ts";
import { errorOf, post, removeFolder, serveTiny, until, writeTinyModel, type TestServer } from "./harness.ts";

const isLong = process.env["MOE_LONG"] === "1";
const numClients = isLong ? 32 : 8;
const seconds = isLong ? 600 : 8;

/** 64 tokens in two layers: keys and values of 16 numbers of 4 bytes. */
const blockBytes = 64 * 2 * 2 * 16 * 4;

let folder = "";
let server: TestServer;
beforeAll(async () => {
  folder = await writeTinyModel();
  // A cache too small for all: sequences lose their places and begin again.
  server = await serveTiny(folder, { maxBatch: 8, maxQueue: 100 }, { cacheBytes: 10 * blockBytes });
}, 60_000);
afterAll(async () => {
  await server.close();
  removeFolder(folder);
}, 60_000);

interface Request {
  readonly prompt: readonly number[];
  readonly max_tokens: number;
  readonly temperature: 0;
  readonly ignore_eos: true;
  readonly logprobs?: number;
}
const random = new Random(17);
const pool: readonly Request[] = Array.from({ length: isLong ? 48 : 12 }, (_, i) => {
  const prompt = Array.from({ length: 1 + random.integer(100) }, () => random.integer(1200));
  const request = { prompt, max_tokens: 1 + random.integer(90), temperature: 0, ignore_eos: true } as const;
  return i % 3 === 0 ? { ...request, logprobs: 2 } : request;
});

async function answerTo(request: Request): Promise<unknown> {
  const reply = await post(server, "/v1/completions", request);
  if (reply.status !== 200) throw new Error(JSON.stringify(reply.body));
  return reply.body["choices"];
}
async function streamedText(request: Request): Promise<string> {
  const response = await fetch(`${server.url}/v1/completions`, {
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
  await post(server, "/v1/completions", { ...request, max_tokens: 200 }, { signal: controller.signal }).catch(() => undefined);
}
const badRequests = ['{"prompt": ', '{"prompt": [99999]}', '{"prompt": "a", "n": -1}', JSON.stringify({ prompt: "word ".repeat(2000) })];

test(`${numClients} clients for ${seconds} s get the answers that each would get alone`, { timeout: (seconds + 120) * 1000 }, async () => {
  const alone: unknown[] = [];
  for (const request of pool) alone.push(await answerTo(request));
  // The model's table of rotations grows with the longest text: once to its end.
  await answerTo({ prompt: [1, 2, 3], max_tokens: 1000, temperature: 0, ignore_eos: true });
  await until(() => server.engine.stats.running === 0);
  const before = server.engine.stats;
  const rss: number[] = [];
  const end = performance.now() + seconds * 1000;
  let answered = 0;
  const client = async (number: number): Promise<void> => {
    const own = new Random(number);
    while (performance.now() < end) {
      const which = own.integer(pool.length);
      const request = pool[which];
      if (request === undefined) return;
      const kind = own.uniform();
      if (kind < 0.15) await abandoned(request, own.integer(60));
      else if (kind < 0.25) {
        const bad = badRequests[own.integer(badRequests.length)] ?? "";
        expect(errorOf(await post(server, "/v1/completions", bad)).status).toBe(400);
      } else if (kind < 0.5) expect([{ text: await streamedText(request) }]).toMatchObject([{ text: textOf(alone[which]) }]);
      else expect(await answerTo(request)).toEqual(alone[which]);
      answered++;
      if (number === 0) rss.push(process.memoryUsage().rss);
    }
  };
  await Promise.all(Array.from({ length: numClients }, (_, number) => client(number)));
  expect(answered).toBeGreaterThan(numClients);
  await until(() => server.engine.stats.running + server.engine.stats.waiting === 0);
  await until(() => server.engine.stats.blocksUsed === 0);
  expect(server.engine.stats.liveBytes).toBe(before.liveBytes);
  // The small cache was felt, and kept beginnings were used.
  expect(server.engine.stats.preemptions).toBeGreaterThan(0);
  expect(server.engine.stats.cachedPromptTokens).toBeGreaterThan(0);
  expect(server.log.filter(({ level }) => level === "error")).toEqual([]);
  if (isLong) {
    const quarter = Math.floor(rss.length / 4);
    const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
    // Client and server are one process here: its heap breathes, but does not grow.
    expect(mean(rss.slice(-quarter))).toBeLessThan(mean(rss.slice(quarter, 2 * quarter)) * 1.1);
  }
});
function textOf(choices: unknown): string {
  return (choices as { text: string }[])[0]?.text ?? "";
}
