/** The official client against a server of a tiny model: what it understands of every answer is what it should. */
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { hiddenSize, removeFolder, serveTiny, writeTinyModel, type TestServer } from "./harness.ts";

let folder = "";
let server: TestServer;
let client: OpenAI;
beforeAll(async () => {
  folder = await writeTinyModel();
  server = await serveTiny(folder);
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
}, 60_000);
afterAll(async () => {
  await server.close();
  removeFolder(folder);
}, 60_000);
const greedy = { model: "tiny", temperature: 0 } as const;
const user = (content: string) => ({ role: "user", content }) as const;

describe("models", () => {
  test("the served one is listed and found, another is not", async () => {
    const { data } = await client.models.list();
    expect(data.map(({ id }) => id)).toEqual(["tiny"]);
    expect((await client.models.retrieve("tiny")).object).toBe("model");
    await expect(client.models.retrieve("gpt-4")).rejects.toThrow(OpenAI.NotFoundError);
  });
});

describe("completions", () => {
  test("streamed and whole are the same text", async () => {
    const request = { ...greedy, prompt: "Once upon a time", max_tokens: 24 };
    const whole = await client.completions.create(request);
    let text = "";
    let usage: unknown = null;
    for await (const chunk of await client.completions.create({ ...request, stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.text ?? "";
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe(whole.choices[0]?.text);
    expect(usage).toMatchObject({ completion_tokens: 24 });
    expect(whole.choices[0]?.finish_reason).toBe("length");
    expect(whole.usage).toMatchObject({ completion_tokens: 24, total_tokens: 24 + (whole.usage?.prompt_tokens ?? 0) });
  });
  test("echo and log-probabilities cover prompt and answer, at the places where the tokens stand", async () => {
    const { choices } = await client.completions.create({ ...greedy, prompt: "Hello there", max_tokens: 4, echo: true, logprobs: 3 });
    const [choice] = choices;
    const { tokens = [], token_logprobs: values = [], text_offset: offsets = [], top_logprobs: tops = [] } = choice?.logprobs ?? {};
    expect(tokens.length).toBe(values.length);
    expect(values[0]).toBeNull();
    expect(values.slice(1).every((value) => value < 0)).toBe(true);
    for (const [i, token] of tokens.entries())
      if (!token.startsWith("bytes:")) expect(choice?.text.startsWith(token, offsets[i])).toBe(true);
    // Greedy tokens are the most probable ones.
    for (let i = tokens.length - 4; i < tokens.length; i++) expect(Math.max(...Object.values(tops[i] ?? {}))).toBe(values[i]);
  });
  test("scoring a text alone (max_tokens 0) gives the log-probabilities of scoring it with an answer", async () => {
    const request = { ...greedy, prompt: "Hello there, how are you", echo: true, logprobs: 1 };
    const alone = await client.completions.create({ ...request, max_tokens: 0 });
    const longer = await client.completions.create({ ...request, max_tokens: 1 });
    const count = alone.usage?.prompt_tokens ?? 0;
    expect(alone.choices[0]?.text).toBe(request.prompt);
    expect(alone.choices[0]?.logprobs?.token_logprobs).toEqual(longer.choices[0]?.logprobs?.token_logprobs?.slice(0, count));
    expect(longer.choices[0]?.logprobs?.tokens).toHaveLength(count + 1);
  });
  test("n answers to each of several prompts come in order, as texts and as ids alike", async () => {
    const prompts = ["One", "Two and a bit"];
    const ids = await Promise.all(
      prompts.map(async (prompt) => ((await client.post("/../tokenize", { body: { prompt } })) as { tokens: number[] }).tokens),
    );
    const request = { model: "tiny", n: 3, max_tokens: 6, temperature: 1, seed: 7 };
    const texts = (await client.completions.create({ ...request, prompt: prompts })).choices;
    expect(texts.map(({ index }) => index)).toEqual([0, 1, 2, 3, 4, 5]);
    expect(new Set(texts.map(({ text }) => text)).size).toBeGreaterThan(3);
    expect((await client.completions.create({ ...request, prompt: ids })).choices).toEqual(texts);
  });
  test("best_of keeps the most probable of its candidates", async () => {
    const request = { model: "tiny", prompt: "Well", max_tokens: 5, temperature: 1, seed: 3, logprobs: 0 };
    const all = (await client.completions.create({ ...request, n: 6 })).choices;
    const best = (await client.completions.create({ ...request, n: 2, best_of: 6 })).choices;
    const mean = (values: readonly number[] = []): number => values.reduce((a, b) => a + b, 0) / values.length;
    const ranked = all.toSorted((a, b) => mean(b.logprobs?.token_logprobs) - mean(a.logprobs?.token_logprobs));
    expect(best.map(({ text }) => text)).toEqual(ranked.slice(0, 2).map(({ text }) => text));
  });
  test("a stop string ends the answer and is not in it", async () => {
    const request = { ...greedy, prompt: "Once upon a time", max_tokens: 30 };
    const text = (await client.completions.create(request)).choices[0]?.text ?? "";
    const stop = text.slice(10, 13);
    const cut = (await client.completions.create({ ...request, stop })).choices[0];
    expect(cut?.text).toBe(text.slice(0, text.indexOf(stop)));
    expect(cut?.finish_reason).toBe("stop");
  });
  test("suffix is refused", async () => {
    await expect(client.completions.create({ ...greedy, prompt: "a", suffix: "b" })).rejects.toThrow(/suffix: text in the middle/);
  });
});

describe("chat", () => {
  test("streamed and whole are the same message, with the same log-probabilities", async () => {
    const request = { ...greedy, messages: [user("Hello")], max_tokens: 12, logprobs: true, top_logprobs: 2 };
    const whole = (await client.chat.completions.create(request)).choices[0];
    let text = "";
    const tokens: unknown[] = [];
    let reason: string | null = null;
    for await (const { choices } of await client.chat.completions.create({ ...request, stream: true })) {
      text += choices[0]?.delta.content ?? "";
      tokens.push(...(choices[0]?.logprobs?.content ?? []));
      reason = choices[0]?.finish_reason ?? reason;
    }
    expect(text).toBe(whole?.message.content);
    expect(tokens).toEqual(whole?.logprobs?.content);
    expect(reason).toBe(whole?.finish_reason);
    expect(tokens).toHaveLength(12);
  });
  test("the same seed gives the same answer, another seed another", async () => {
    const ask = async (seed: number): Promise<string | null | undefined> =>
      (await client.chat.completions.create({ model: "tiny", messages: [user("Hi")], max_tokens: 16, seed })).choices[0]?.message.content;
    expect(await ask(5)).toBe(await ask(5));
    expect(await ask(-5)).not.toBe(await ask(5));
  });
  test("response_format holds the answer to a schema", async () => {
    const schema = {
      type: "object",
      properties: { name: { type: "string", maxLength: 8 }, age: { type: "integer", minimum: 0, maximum: 9 }, tags: { enum: ["a", "b"] } },
      required: ["name", "age", "tags"],
      additionalProperties: false,
    };
    for (let seed = 0; seed < 3; seed++) {
      const { choices } = await client.chat.completions.create({
        model: "tiny",
        messages: [user("Who?")],
        max_tokens: 200,
        seed,
        response_format: { type: "json_schema", json_schema: { name: "person", schema } },
      });
      expect(choices[0]?.finish_reason).toBe("stop");
      const value = JSON.parse(choices[0]?.message.content ?? "") as Record<string, unknown>;
      expect(Object.keys(value)).toEqual(["name", "age", "tags"]);
      expect(["a", "b"]).toContain(value["tags"]);
      expect(value["age"]).toBeLessThanOrEqual(9);
    }
    const object = await client.chat.completions.create({
      model: "tiny",
      messages: [user("Anything?")],
      max_tokens: 400,
      seed: 1,
      response_format: { type: "json_object" },
    });
    if (object.choices[0]?.finish_reason === "stop") expect(typeof JSON.parse(object.choices[0].message.content ?? "")).toBe("object");
    expect(object.choices[0]?.message.content?.trimStart().startsWith("{")).toBe(true);
  });
  test("a schema that nothing satisfies, or that is none, is refused", async () => {
    const ask = (schema: Record<string, unknown>): Promise<unknown> =>
      client.chat.completions.create({
        ...greedy,
        messages: [user("Hi")],
        response_format: { type: "json_schema", json_schema: { name: "x", schema } },
      });
    await expect(ask({ enum: [] })).rejects.toThrow(OpenAI.BadRequestError);
    await expect(ask({ type: "integer", minimum: 3, maximum: 2 })).rejects.toThrow(OpenAI.BadRequestError);
    await expect(ask({ type: "colour" })).rejects.toThrow(OpenAI.BadRequestError);
  });
  const parameters = {
    type: "object",
    properties: { city: { enum: ["Rome", "Oslo"] }, days: { type: "integer", minimum: 1, maximum: 5 } },
    required: ["city", "days"],
    additionalProperties: false,
  };
  const tools = [
    { type: "function", function: { name: "weather", description: "Weather of a city", parameters } },
    { type: "function", function: { name: "clock", parameters: { type: "object", properties: {}, additionalProperties: false } } },
  ] as const;
  test.each(["required", { type: "function", function: { name: "weather" } }] as const)(
    "tool_choice %j gives a call with arguments of its schema, streamed and whole",
    async (choice) => {
      const request = { ...greedy, messages: [user("Weather?")], max_tokens: 200, tools: [...tools], tool_choice: choice, seed: 2 };
      const whole = (await client.chat.completions.create(request)).choices[0];
      const [call] = whole?.message.tool_calls ?? [];
      if (call?.type !== "function") throw new Error("expected a call");
      expect(whole?.finish_reason).toBe("tool_calls");
      expect(whole?.message.content).toBeNull();
      const args = JSON.parse(call.function.arguments) as Record<string, unknown>;
      expect(["weather", "clock"]).toContain(call.function.name);
      if (call.function.name === "weather") expect(["Rome", "Oslo"]).toContain(args["city"]);
      const streamed: { name?: string | undefined; arguments?: string | undefined }[] = [];
      for await (const { choices } of await client.chat.completions.create({ ...request, stream: true }))
        for (const { function: part } of choices[0]?.delta.tool_calls ?? [])
          streamed.push({ name: part?.name, arguments: part?.arguments });
      expect(streamed).toEqual([call.function]);
    },
  );
  test("calls and results of a conversation go through the template", async () => {
    const call = { id: "call_1", type: "function", function: { name: "clock", arguments: "{}" } } as const;
    const messages: OpenAI.ChatCompletionMessageParam[] = [
      user("Time?"),
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", tool_call_id: "call_1", content: "noon" },
    ];
    const { choices, usage } = await client.chat.completions.create({ ...greedy, messages, tools: [...tools], max_tokens: 4 });
    expect(choices[0]?.message.content).not.toBe("");
    const without = await client.chat.completions.create({ ...greedy, messages: [user("Time?")], max_tokens: 4 });
    expect(usage?.prompt_tokens ?? 0).toBeGreaterThan((without.usage?.prompt_tokens ?? 0) + 20);
  });
});

describe("responses", () => {
  test("streamed and whole are the same text, which chat gives too", async () => {
    const request = { ...greedy, instructions: "Be brief.", input: "Hello", max_output_tokens: 10 };
    const whole = await client.responses.create(request);
    const events: string[] = [];
    let text = "";
    for await (const event of await client.responses.create({ ...request, stream: true })) {
      events.push(event.type);
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.incomplete") expect(event.response.output).toMatchObject([{ content: [{ text }] }]);
    }
    expect(text).toBe(whole.output_text);
    expect(events[0]).toBe("response.created");
    expect(events.at(-1)).toBe("response.incomplete");
    expect(whole.incomplete_details).toEqual({ reason: "max_output_tokens" });
    const chat = await client.chat.completions.create({
      ...greedy,
      messages: [{ role: "system", content: "Be brief." }, user("Hello")],
      max_tokens: 10,
    });
    expect(chat.choices[0]?.message.content).toBe(text);
  });
  test("what was said before has to be sent, as it is not kept", async () => {
    await expect(client.responses.create({ ...greedy, input: "a", previous_response_id: "resp_1" })).rejects.toThrow(
      /previous_response_id/,
    );
  });
  test("a function can be asked for", async () => {
    const tool: OpenAI.Responses.FunctionTool = { type: "function", name: "f", parameters: { enum: [1] }, strict: true };
    const { output } = await client.responses.create({
      ...greedy,
      input: "a",
      tools: [tool],
      tool_choice: { type: "function", name: "f" },
    });
    expect(output).toMatchObject([{ type: "function_call", name: "f", arguments: "1" }]);
  });
});

describe("embeddings", () => {
  test("are vectors of the hidden size, as floats and as base64, and the same for the same text", async () => {
    const floats = await client.embeddings.create({ model: "tiny", input: ["One", "Two", "One"], encoding_format: "float" });
    expect(floats.data.map(({ embedding }) => embedding.length)).toEqual([hiddenSize, hiddenSize, hiddenSize]);
    expect(floats.data[0]?.embedding).toEqual(floats.data[2]?.embedding);
    expect(floats.data[0]?.embedding).not.toEqual(floats.data[1]?.embedding);
    // The client asks for base64 and decodes it.
    const decoded = await client.embeddings.create({ model: "tiny", input: "Two" });
    expect(decoded.data[0]?.embedding.map(Math.fround)).toEqual(floats.data[1]?.embedding);
    await expect(client.embeddings.create({ model: "tiny", input: "a", dimensions: 5 })).rejects.toThrow(/dimensions/);
  });
});
