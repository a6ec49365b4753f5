/**
 * The examples at the end of every verb's help, run as a reader would: by a shell, one after the other in one folder. The model is small,
 * the Hub is a server of this machine, and servers listen at a port that the system chooses.
 */
import { spawn, spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadBackend } from "../../src/backend/load.ts";
import { writeTokenizerFiles } from "../../src/checkpoint/tokenizer.ts";
import { completionScript } from "../../src/cli/completion.ts";
import { examplesOf } from "../../src/cli/examples.ts";
import { createProgram } from "../../src/cli/program.ts";
import { modelPresets } from "../../src/config/model-presets.ts";
import { Decoder, saveModel } from "../../src/model/index.ts";
import { Engine } from "../../src/tensor/index.ts";
import { FakeHub } from "../fake-hub.ts";

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url));
const hub = new FakeHub("HuggingFaceTB/SmolLM2-135M-Instruct");
let folder = "";

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "moe-examples-"));
  const model = join(folder, "SmolLM2-135M");
  const size = { vocabSize: 1200, hiddenSize: 32, ffnSize: 48, numLayers: 2, numHeads: 3, numKvHeads: 1, headDim: 16, maxPositions: 2048 };
  using engine = new Engine(await loadBackend());
  using decoder = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size, initStd: 0.2 }, { dtype: "f32", seed: 3 });
  saveModel(decoder, model);
  const fixture = new URL("../golden/tokenizer/hf-smollm.tokenizer.json", import.meta.url);
  const chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
  const tokenizerConfig = { bos_token: "<|im_start|>", eos_token: "<|im_end|>", chat_template };
  writeTokenizerFiles({ tokenizerJson: JSON.parse(readFileSync(fixture, "utf8")) as unknown, tokenizerConfig }, model);
  const sentences = Array.from({ length: 400 }, (_, i) => `Line ${i}: the cat sat on mat number ${(i * 7) % 31}.`);
  writeFileSync(join(folder, "book.txt"), sentences.join("\n"));
  mkdirSync(join(folder, "data"));
  const problems = [1, 2, 3].map((i) => `${JSON.stringify({ question: `What is ${i} and ${i}?`, answer: `It is\n#### ${2 * i}` })}\n`);
  for (const split of ["test", "train"]) writeFileSync(join(folder, "data", `gsm8k-${split}.jsonl`), problems.join(""));
  // `moe` as a reader has it: a command on the PATH.
  mkdirSync(join(folder, "bin"));
  writeFileSync(join(folder, "bin", "moe"), `#!/bin/sh\nexec "${process.execPath}" "${main}" "$@"\n`);
  chmodSync(join(folder, "bin", "moe"), 0o755);
  for (const name of readdirSync(model)) hub.files.set(name, readFileSync(join(model, name)));
  await hub.start();
}, 60_000);
afterAll(async () => {
  await hub.stop();
  rmSync(folder, { recursive: true, force: true });
});

interface Ended {
  readonly code: number | null;
  readonly text: string;
}
/** Runs a line by the shell, with nothing to read; where it serves, it is told to end once it says where. */
async function run(line: string, serves: boolean): Promise<Ended> {
  const env = { ...process.env, PATH: `${join(folder, "bin")}:${process.env["PATH"]}`, HF_ENDPOINT: hub.endpoint };
  const child = spawn("sh", ["-c", `exec ${line}`], { cwd: folder, env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  let told = !serves;
  const hear = (chunk: Buffer): void => {
    text += chunk.toString();
    if (told || !/http:\/\/127\.0\.0\.1:\d+/.test(text)) return;
    // Once: a second signal ends what does not want to wait.
    told = true;
    child.kill("SIGTERM");
  };
  child.stdout.on("data", hear);
  child.stderr.on("data", hear);
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  return { code, text };
}

describe("the examples in the help of every verb run", async () => {
  const { commands } = await createProgram();
  test.each(commands.map((command) => command.name()))(
    "%s",
    async (verb) => {
      const examples = examplesOf(verb);
      expect(examples.length).toBeGreaterThanOrEqual(2);
      let help = "";
      const command = (await createProgram(verb)).commands[0];
      command?.configureOutput({ writeOut: (text) => (help += text) }).outputHelp();
      const serves = verb === "serve" || verb === "dashboard";
      for (const { command: line, what } of examples) {
        expect(help).toContain(`${line}\n      ${what}`);
        const { code, text } = await run(serves ? `${line} --port 0` : line, serves);
        expect(code, `${line}\n${text}`).toBe(0);
      }
    },
    180_000,
  );
});

describe("completion", () => {
  const has = (shell: string): boolean => spawnSync(shell, ["-c", "true"]).status === 0;
  async function script(shell: "bash" | "zsh" | "fish"): Promise<string> {
    const path = join(folder, `moe.${shell}`);
    writeFileSync(path, completionScript(shell, await createProgram()));
    return path;
  }
  const answer = (shell: string, program: string): string[] =>
    spawnSync(shell, ["-c", program], { encoding: "utf8", cwd: folder }).stdout.trim().split(/\s+/);

  test.skipIf(!has("bash"))("bash completes verbs, options, their choices and files", async () => {
    const path = await script("bash");
    const complete = (...words: string[]): string[] => {
      const line = words.map((word) => `'${word}'`).join(" ");
      return answer(
        "bash",
        `source ${path}; COMP_WORDS=(${line}); COMP_CWORD=${words.length - 1}; _moe 2>/dev/null; echo "\${COMPREPLY[@]}"`,
      );
    };
    expect(complete("moe", "up")).toEqual(["upcycle"]);
    expect(complete("moe", "plan", "x", "--obj")).toEqual(["--objective"]);
    expect(complete("moe", "plan", "x", "--objective", "")).toEqual(["time", "memory", "cost"]);
    expect(complete("moe", "inspect", "Smol")).toEqual(["SmolLM2-135M"]);
    expect(complete("moe", "train", "--re")).toEqual(["--resume"]);
  });
  test.skipIf(!has("fish"))("fish completes verbs, options and their choices, with descriptions", async () => {
    const path = await script("fish");
    const complete = (line: string): string[] =>
      spawnSync("fish", ["-c", `source ${path}; complete -C '${line}'`], { encoding: "utf8", cwd: folder })
        .stdout.trim()
        .split("\n")
        .map((candidate) => candidate.split("\t")[0] ?? "");
    expect(complete("moe upc")).toEqual(["upcycle"]);
    expect(complete("moe plan --obj")).toEqual(["--objective"]);
    expect(complete("moe plan x --objective ").toSorted()).toEqual(["cost", "memory", "time"]);
  });
  test.skipIf(!has("zsh"))("zsh reads its script, and has every verb in it", async () => {
    const path = await script("zsh");
    expect(spawnSync("zsh", ["-n", path]).status).toBe(0);
    const text = readFileSync(path, "utf8");
    for (const command of (await createProgram()).commands) expect(text).toContain(`    ${command.name()}) _arguments`);
  });
});
