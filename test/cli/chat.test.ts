/** `moe chat` as a process: turns come from a pipe, replies go to standard output, everything else to standard error. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { writeTokenizerFiles } from "../../src/checkpoint/tokenizer.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { Decoder, saveModel } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const template =
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
let folder = "";
function chat(input: string, ...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, "chat", join(folder, "model"), "--max-tokens", "6", ...args], {
    encoding: "utf8",
    input,
  });
  return { status, stdout, stderr };
}
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-chat-"));
  const size = { vocabSize: 1200, hiddenSize: 32, ffnSize: 48, numLayers: 2, numHeads: 2, numKvHeads: 1, headDim: 16, maxPositions: 256 };
  using engine = new Engine(await loadBackend());
  using model = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size, initStd: 0.2 }, { dtype: "f32", seed: 3 });
  const fixture = new URL("../golden/tokenizer/hf-smollm.tokenizer.json", import.meta.url);
  const tokenizerJson = JSON.parse(readFileSync(fixture, "utf8")) as unknown;
  for (const [name, tokenizerConfig] of [
    ["model", { chat_template: template }],
    ["plain", {}],
  ] as const) {
    saveModel(model, join(folder, name));
    writeTokenizerFiles({ tokenizerJson, tokenizerConfig }, join(folder, name));
  }
});
afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

test("a reply a line, the same for the same seed; history changes it and /reset takes history away", { timeout: 120_000 }, () => {
  const { status, stdout, stderr } = chat("Hello\nHello\n/reset\nHello\n/exit\nnever said\n", "--temperature", "0");
  expect(status, stderr).toBe(0);
  expect(stdout).not.toMatch(/^> /m);
  const alone = chat("Hello\n", "--temperature", "0");
  expect(alone.stdout.length).toBeGreaterThan(1);
  expect(stdout.startsWith(alone.stdout)).toBe(true);
  expect(stdout.endsWith(alone.stdout)).toBe(true);
  const second = stdout.slice(alone.stdout.length, stdout.length - alone.stdout.length);
  expect(second).not.toBe("");
  expect(second).not.toBe(alone.stdout);
});
test("a context that is full forgets the oldest turns and says so", { timeout: 120_000 }, () => {
  const { status, stderr } = chat("one two three four five six seven\n".repeat(6), "--max-context", "128", "--system", "Be brief.");
  expect(status, stderr).toBe(0);
  expect(stderr).toMatch(/the context is full: 2 messages forgotten/);
});
test("unknown commands, models without a template and flags out of range are refused", { timeout: 120_000 }, () => {
  expect(chat("/quit\n").stderr).toMatch(/unknown command \/quit; known are \/reset and \/exit/);
  const plain = spawnSync(process.execPath, [main, "chat", join(folder, "plain")], { encoding: "utf8", input: "hi\n" });
  expect([plain.status, plain.stdout]).toEqual([2, ""]);
  expect(plain.stderr).toMatch(/has no chat template/);
  expect(chat("hi\n", "--top-p", "2")).toMatchObject({ status: 2, stdout: "" });
});
