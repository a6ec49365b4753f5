/** A server of a model that is cut over ranks answers as a server of the whole model does. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { post, removeFolder, serveTiny, writeTinyModel, type TestServer } from "../server/harness.ts";

let folder = "";
beforeAll(async () => {
  folder = await writeTinyModel();
}, 120_000);
afterAll(() => {
  removeFolder(folder);
});

const story = "Once upon a time there was a ship that went out to sea, and nobody knew where it was bound for. ";
const requests = [
  { prompt: "Hello", max_tokens: 12, temperature: 0 },
  { prompt: story.repeat(8), max_tokens: 9, temperature: 0, logprobs: 2 },
  { prompt: `${story.repeat(8)}The ship`, max_tokens: 9, temperature: 0.8, seed: 4, n: 2 },
  { prompt: "List:", max_tokens: 20, temperature: 1, seed: 11, top_p: 0.9 },
];
async function answers(server: TestServer): Promise<unknown[]> {
  const replies = await Promise.all(requests.map((request) => post(server, "/v1/completions", request)));
  // Once more: now the prefix cache has the long beginning.
  replies.push(await post(server, "/v1/completions", requests[1]));
  return replies.map(({ status, body }) => [status, (body["choices"] as { text: string; index: number }[]).map(({ text }) => text)]);
}

test("3 unequal ranks, one of them without heads, answer as one does: together, sampled, from the prefix cache", async () => {
  const whole = await serveTiny(folder);
  const expected = await answers(whole);
  await whole.close();
  let death = "";
  const cut = await serveTiny(
    folder,
    {},
    { tp: { ranks: 3, weights: [2, 1, 1], memoryBytes: null }, onDeath: (message) => (death = message) },
  );
  expect(cut.engine.info.engine).toContain("3 ranks");
  expect(await answers(cut)).toEqual(expected);
  const health = await fetch(`${cut.url}/health`);
  expect(health.status).toBe(200);
  await cut.close();
  expect(death).toBe("");
}, 300_000);

test("ranks that cannot load end the start with the reason", async () => {
  await expect(serveTiny(`${folder}-nowhere`, {}, { tp: { ranks: 2, weights: null, memoryBytes: null } })).rejects.toThrow(/nowhere/);
}, 120_000);
