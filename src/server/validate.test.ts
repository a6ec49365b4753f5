import { expect, test } from "vitest";
import { ApiError } from "./errors.ts";
import { openApiDocument } from "./openapi.ts";
import { chatRequest, completionRequest } from "./schemas.ts";
import { decodeJson, parseBody } from "./validate.ts";

function refusal(run: () => unknown): { message: string; param: string | null } {
  try {
    run();
  } catch (error) {
    if (error instanceof ApiError && error.data.status === 400) return { message: error.message, param: error.data.param };
    throw error;
  }
  throw new Error("nothing was refused");
}
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

test("a body is UTF-8, JSON and of bounded depth", () => {
  expect(decodeJson(bytes('{"a": "[[[{\\"[", "b": [1]}'))).toEqual({ a: '[[[{"[', b: [1] });
  expect(refusal(() => decodeJson(Uint8Array.of(0x22, 0xc3, 0x28, 0x22))).message).toMatch(/UTF-8/);
  expect(refusal(() => decodeJson(bytes("{"))).message).toMatch(/JSON/);
  expect(decodeJson(bytes("[".repeat(128) + "]".repeat(128)))).toBeInstanceOf(Array);
  expect(refusal(() => decodeJson(bytes("[".repeat(129) + "]".repeat(129)))).message).toMatch(/128 deep/);
});

test("what is wrong is named by its place", () => {
  expect(refusal(() => parseBody(completionRequest, { prompt: "a", temperature: "hot" })).param).toBe("temperature");
  expect(refusal(() => parseBody(completionRequest, { prompt: [[1], [2, -1]] })).param).toBe("prompt.1.1");
  expect(refusal(() => parseBody(completionRequest, {})).param).toBe("prompt");
  expect(refusal(() => parseBody(completionRequest, { prompt: "a", temprature: 1 }))).toEqual({
    message: 'unknown field "temprature" (did you mean "temperature"?)',
    param: "temprature",
  });
  const message = { role: "user", content: "a" };
  expect(refusal(() => parseBody(chatRequest, { messages: [message, { role: "robot", content: "a" }] })).param).toBe("messages.1.role");
  expect(refusal(() => parseBody(chatRequest, { messages: [{ ...message, content: [{ type: "image_url" }] }] })).param).toMatch(
    /^messages\.0\.content/,
  );
});

test("a long list of wrong elements costs no more than a right one", () => {
  const started = process.cpuUsage();
  const wrong = Array.from({ length: 500_000 }, () => 0.5);
  expect(refusal(() => parseBody(completionRequest, { prompt: wrong })).param).toBe("prompt.0");
  expect(refusal(() => parseBody(chatRequest, { messages: wrong })).message).toMatch(/1 to 4096 items/);
  // Microseconds.
  expect(process.cpuUsage(started).user).toBeLessThan(400_000);
});

test("the document has a schema for every body, and says which fields are required", () => {
  const { components, paths } = openApiDocument("1") as {
    components: { schemas: Record<string, { required?: string[]; additionalProperties?: boolean; properties: Record<string, unknown> }> };
    paths: Record<string, unknown>;
  };
  expect(components.schemas["CompletionRequest"]?.required).toEqual(["prompt"]);
  expect(components.schemas["ChatCompletionRequest"]?.required).toEqual(["messages"]);
  expect(components.schemas["ChatCompletionRequest"]?.additionalProperties).toBe(false);
  expect(components.schemas["CompletionRequest"]?.properties["prompt"]).toMatchObject({ anyOf: [{ type: "string" }, {}, {}, {}] });
  expect(Object.keys(paths)).toContain("/v1/chat/completions");
});
