/** What a server has to survive: clients that leave, that send rubbish, too much, too many; a key; its own end; the engine's death. */
import { connect } from "node:net";
import { Worker } from "node:worker_threads";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { errorOf, maxPositions, post, removeFolder, serveTiny, until, writeTinyModel, type TestServer } from "./harness.ts";

let folder = "";
let server: TestServer;
beforeAll(async () => {
  folder = await writeTinyModel();
  server = await serveTiny(folder, { maxBatch: 4, maxQueue: 4, bodyBytes: 200_000 });
}, 60_000);
afterAll(async () => {
  await server.close();
  removeFolder(folder);
}, 60_000);

const long = { prompt: "Once upon a time", max_tokens: 400, temperature: 0, ignore_eos: true };
async function metric(of: TestServer, name: string): Promise<number> {
  const text = await (await fetch(`${of.url}/metrics`)).text();
  const line = text.split("\n").find((row) => row.startsWith(`${name} `) || row.startsWith(`${name}{`));
  if (line === undefined) throw new Error(`no metric ${name}`);
  return Number(line.slice(line.lastIndexOf(" ") + 1));
}
async function isWell(of: TestServer): Promise<void> {
  const { status, body } = await post(of, "/v1/completions", { prompt: "Hello", max_tokens: 3, temperature: 0 });
  expect([status, (body["usage"] as Record<string, unknown>)["completion_tokens"]]).toEqual([200, 3]);
}
/** Bytes over a connection of their own; what comes back until it is closed. */
function raw(of: TestServer, bytes: string | Buffer): Promise<string> {
  return new Promise((done, failed) => {
    const socket = connect(Number(new URL(of.url).port), "127.0.0.1", () => socket.write(bytes));
    let text = "";
    socket.on("data", (data) => (text += data.toString("latin1")));
    socket.on("close", () => {
      done(text);
    });
    socket.on("error", failed);
    socket.setTimeout(20_000, () => socket.destroy());
  });
}

describe("a client that leaves", () => {
  test.each([true, false])("frees its place and its cache, streaming: %s", async (stream) => {
    const controllers = Array.from({ length: 4 }, () => new AbortController());
    const requests = controllers.map(({ signal }) =>
      post(server, "/v1/completions", { ...long, stream, max_tokens: 480 }, { signal }).then(
        () => "answered",
        () => "gone",
      ),
    );
    // Not all four: on a busy machine the first may be done before the last has come.
    await until(() => server.engine.stats.running > 0);
    for (const controller of controllers) controller.abort();
    await until(() => server.engine.stats.running === 0 && server.engine.stats.blocksUsed === 0);
    expect(await Promise.all(requests)).toEqual(["gone", "gone", "gone", "gone"]);
    const { generatedTokens } = server.engine.stats;
    await isWell(server);
    // Nothing went on in the background.
    await until(() => server.engine.stats.generatedTokens === generatedTokens + 3);
    expect(await metric(server, "moe_requests_running")).toBe(0);
  });
  test("in the middle of a body, or with half a head, is no request", async () => {
    const head = `POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"prompt"`;
    for (const bytes of [head, "POST /v1/comp"]) {
      await new Promise<void>((done) => {
        const socket = connect(Number(new URL(server.url).port), "127.0.0.1", () => {
          socket.write(bytes);
          setTimeout(() => socket.destroy(), 30);
        });
        socket.on("close", () => {
          done();
        });
      });
    }
    await isWell(server);
  });
});

describe("what is no request that can be served", () => {
  const json = { "content-type": "application/json" };
  test.each<[string, string | Uint8Array, RegExp, number]>([
    ["invalid UTF-8", Buffer.from([0x7b, 0x22, 0x61, 0x22, 0x3a, 0x22, 0xff, 0xfe, 0x22, 0x7d]), /UTF-8/, 400],
    ["broken JSON", '{"prompt": ', /JSON/, 400],
    ["no JSON at all", "", /JSON|body/, 400],
    ["a list", "[]", /object/, 400],
    ["null", "null", /object/, 400],
    ["brackets without end", "[".repeat(100_000), /nested more than 128/, 400],
    ["a body that is too large", JSON.stringify({ prompt: "a".repeat(300_000) }), /too large/, 413],
    ["a prototype", '{"prompt": "a", "__proto__": {"n": 3}}', /__proto__/, 400],
    ["a misspelt field", '{"prompt": "a", "max_token": 3}', /did you mean "max_tokens"/, 400],
    ["a wrong type deep inside", '{"prompt": ["a", 3]}', /prompt\.1/, 400],
    ["an empty list of prompts", '{"prompt": []}', /prompt/, 400],
    ["an id outside the vocabulary", '{"prompt": [1, 1199, 1200]}', /prompt token 2 is 1200; the vocabulary has 1200/, 400],
    ["a bias outside the vocabulary", '{"prompt": "a", "logit_bias": {"5000": 1}}', /token 5000/, 400],
    ["more answers than there are places", '{"prompt": "a", "n": 9}', /9 answers/, 400],
    ["nothing to do", '{"prompt": "a", "max_tokens": 0}', /only with echo/, 400],
    ["another model", '{"prompt": "a", "model": "gpt-4"}', /"gpt-4" is not served/, 404],
  ])("%s", async (_, body, message, status) => {
    const error = errorOf(await post(server, "/v1/completions", body, { headers: json }));
    expect(error.message).toMatch(message);
    expect(error.status).toBe(status);
  });
  test("an over-long prompt, as text, as ids and as a conversation", async () => {
    const text = "word ".repeat(maxPositions * 2);
    const requests = [
      ["/v1/completions", { prompt: text }],
      ["/v1/completions", { prompt: Array.from({ length: maxPositions }, () => 5) }],
      ["/v1/completions", { prompt: text, stream: true }],
      ["/v1/chat/completions", { messages: [{ role: "user", content: text }] }],
      ["/v1/responses", { input: text, stream: true }],
      ["/v1/embeddings", { input: text }],
    ] as const;
    for (const [path, body] of requests) {
      const error = errorOf(await post(server, path, body));
      expect([path, error.status, error.code]).toEqual([path, 400, "context_length_exceeded"]);
      expect(error.message).toMatch(/holds 512 tokens/);
    }
  });
  test("an answer ends where the context does", async () => {
    const { body } = await post(server, "/v1/completions", {
      prompt: Array.from({ length: 500 }, () => 5),
      max_tokens: 100,
      ignore_eos: true,
    });
    expect(body).toMatchObject({ choices: [{ finish_reason: "length" }], usage: { total_tokens: maxPositions } });
  });
  test("another content type, another method, another route", async () => {
    expect(errorOf(await post(server, "/v1/completions", '{"prompt": "a"}', { headers: { "content-type": "text/plain" } })).status).toBe(
      415,
    );
    expect(errorOf(await post(server, "/v1/completions", {}, { method: "PUT" }))).toMatchObject({
      status: 405,
      code: "method_not_allowed",
    });
    expect(errorOf(await post(server, "/v1/nowhere", {})).status).toBe(404);
  });
  test("bytes that are no HTTP get an answer and the connection is closed", async () => {
    expect(await raw(server, "\x16\x03\x01 hello\r\n\r\n")).toMatch(/^HTTP\/1.1 400 Bad Request[\s\S]*"code":"bad_http"/);
    expect(await raw(server, `GET / HTTP/1.1\r\nhost: x\r\nx: ${"a".repeat(100_000)}\r\n\r\n`)).toMatch(/^HTTP\/1.1 431 /);
    await isWell(server);
  });
});

describe("too much at once", () => {
  test("what would wait behind a full queue gets 429 with Retry-After, and the others their answers", async () => {
    const requests = Array.from({ length: 12 }, () => post(server, "/v1/completions", { ...long, max_tokens: 40 }));
    const replies = await Promise.all(requests);
    const statuses = replies.map(({ status }) => status);
    expect(statuses.filter((status) => status === 200).length).toBeGreaterThanOrEqual(8);
    const refused = replies.filter(({ status }) => status === 429);
    expect(refused.length).toBeGreaterThan(0);
    for (const reply of refused) {
      expect(errorOf(reply)).toMatchObject({ code: "queue_full", type: "rate_limit_error" });
      expect(Number(reply.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
    }
    const texts = replies.filter(({ status }) => status === 200).map(({ body }) => (body["choices"] as { text: string }[])[0]?.text);
    expect(new Set(texts).size).toBe(1);
  });
  test("/health answers within 50 ms while every place is taken and the queue is full", { timeout: 60_000 }, async () => {
    const controller = new AbortController();
    // As many as are made at once and as many as may wait, streamed: all that the server is ever given to do.
    const request = { ...long, stream: true };
    const ask = async (): Promise<void> => {
      while (!controller.signal.aborted) {
        await fetch(`${server.url}/v1/completions`, {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify(request),
          signal: controller.signal,
        }).then(
          (response) => response.text().catch(() => ""),
          () => "",
        );
      }
    };
    const load = Array.from({ length: 8 }, ask);
    await until(() => server.engine.stats.running === 4 && server.engine.stats.waiting > 0);
    const round = async (): Promise<number[]> => {
      const times: number[] = [];
      for (let i = 0; i < 60; i++) {
        const started = performance.now();
        expect((await fetch(`${server.url}/health`)).status).toBe(200);
        times.push(performance.now() - started);
        await new Promise((done) => setTimeout(done, 5));
      }
      return times.toSorted((a, b) => a - b);
    };
    // Client and server are one process here and other tests run beside it: 57 of 60 within 50 ms, in one of three rounds.
    let best = await round();
    for (let again = 0; again < 2 && (best[56] ?? 0) >= 50; again++) best = await round();
    controller.abort();
    await Promise.all(load);
    expect(best[56]).toBeLessThan(50);
    await until(() => server.engine.stats.running === 0);
  });
  test("an answer that takes longer than the limit is ended with 504, or in a stream with an error", async () => {
    const hasty = await serveTiny(folder, { timeoutMs: 150 });
    const endless = { ...long, n: 16, max_tokens: 480 };
    expect(errorOf(await post(hasty, "/v1/completions", endless))).toMatchObject({ status: 504, code: "timeout" });
    const response = await fetch(`${hasty.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...endless, stream: true }),
    });
    const text = await response.text();
    expect(text).toMatch(/"code":"timeout"/);
    await until(() => hasty.engine.stats.running === 0 && hasty.engine.stats.blocksUsed === 0);
    await hasty.close();
  });
});

describe("a key", () => {
  test("is asked for on every route but /health, as a bearer token or a password", async () => {
    const locked = await serveTiny(folder, {}, { apiKey: "secret" });
    const document = (await (await fetch(`${locked.url}/openapi.json`, { headers: { authorization: "Bearer secret" } })).json()) as {
      paths: Record<string, Record<string, unknown>>;
    };
    const routes = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.keys(methods).map((method) => [method.toUpperCase(), path] as const),
    );
    expect(routes.length).toBeGreaterThan(12);
    const basic = (text: string): string => `Basic ${Buffer.from(text).toString("base64")}`;
    for (const [method, path] of [...routes, ["GET", "/nowhere"] as const]) {
      const ask = async (authorization?: string): Promise<number> =>
        (
          await fetch(`${locked.url}${path.replace("{model}", "tiny")}`, {
            method,
            ...(authorization === undefined ? {} : { headers: { authorization } }),
          })
        ).status;
      const wrong = await Promise.all([ask(), ask("Bearer wrong"), ask("Bearer secre"), ask("secret"), ask(basic("me:wrong"))]);
      expect([path, ...wrong]).toEqual([path, ...wrong.map(() => (path === "/health" ? 200 : 401))]);
      const right = await Promise.all([ask("Bearer secret"), ask(basic("me:secret"))]);
      for (const status of right) expect([path, status]).not.toEqual([path, 401]);
    }
    expect(errorOf(await post(locked, "/v1/completions", { prompt: "a" }))).toMatchObject({
      type: "authentication_error",
      code: "missing_api_key",
    });
    await locked.close();
  });
});

describe("experts", () => {
  test("are counted between start and stop, in every layer, top-k for each token", async () => {
    const experts = async (action: string): Promise<Record<string, unknown>> => (await post(server, "/v1/experts", { action })).body;
    expect(await experts("start")).toMatchObject({ recording: true });
    await post(server, "/v1/completions", { prompt: [1, 2, 3, 4, 5], max_tokens: 3, temperature: 0, ignore_eos: true });
    const record = (await experts("stop")) as { recording: boolean; layers: { layer: number; tokens: number[]; imbalance: number }[] };
    await isWell(server);
    const dumped = (await (await fetch(`${server.url}/v1/experts`)).json()) as unknown;
    expect(dumped).toEqual(record);
    expect(record.recording).toBe(false);
    expect(record.layers.map(({ layer }) => layer)).toEqual([0, 1]);
    for (const { tokens, imbalance } of record.layers) {
      // Five of the prompt, and two of the answer that something follows; two experts each.
      expect(tokens.reduce((a, b) => a + b, 0)).toBe(14);
      expect(imbalance).toBeCloseTo((Math.max(...tokens) * 8) / 14);
    }
    expect(await metric(server, "moe_expert_tokens_total")).toBeGreaterThan(0);
  });
});

describe("the end", () => {
  test("lets what is under way finish, takes nothing new, and leaves the engine's thread ended", async () => {
    const ending = await serveTiny(folder);
    // Long enough to be seen running: one short answer may be over before its running is told.
    const under = post(ending, "/v1/completions", { ...long, n: 16, max_tokens: 480 });
    await until(() => ending.engine.stats.running > 0);
    const closed = ending.close();
    await until(async () => (await fetch(`${ending.url}/health`)).status === 503);
    expect(errorOf(await post(ending, "/v1/completions", { prompt: "a" }))).toMatchObject({ status: 503, code: "shutting_down" });
    expect(await under).toMatchObject({ status: 200, body: { usage: { completion_tokens: 16 * 480 } } });
    await closed;
    await expect(fetch(`${ending.url}/health`)).rejects.toThrow();
  });
  test("ends what takes too long with 503", async () => {
    const ending = await serveTiny(folder, { drainMs: 50 });
    const under = post(ending, "/v1/completions", { ...long, n: 16, max_tokens: 480 });
    await until(() => ending.engine.stats.running > 0);
    await ending.close();
    expect(errorOf(await under)).toMatchObject({ status: 503, code: "shutting_down" });
  });
  test("of the engine is told with 503 to those who wait and those who come, and to the process", async () => {
    const workers: Worker[] = [];
    const on = vi.spyOn(Worker.prototype, "on").mockImplementation(function (this: Worker, ...args: Parameters<Worker["on"]>) {
      if (!workers.includes(this)) workers.push(this);
      return Worker.prototype.addListener.apply(this, args);
    } as Worker["on"]);
    const deaths: [string, number][] = [];
    const dying = await serveTiny(folder, {}, { onDeath: (message, exitCode) => void deaths.push([message, exitCode]) });
    on.mockRestore();
    const under = post(dying, "/v1/completions", { ...long, n: 16 });
    await until(() => dying.engine.stats.running > 0);
    await workers[0]?.terminate();
    expect(errorOf(await under)).toMatchObject({ status: 503, code: "engine_gone" });
    expect(errorOf(await post(dying, "/v1/completions", { prompt: "a" }))).toMatchObject({ status: 503, code: "engine_gone" });
    const health = await fetch(`${dying.url}/health`);
    expect([health.status, await health.json()]).toMatchObject([503, { status: "failed" }]);
    expect(deaths).toEqual([["the engine's thread ended with code 1", 1]]);
    await dying.close();
  });
});
