/** A tiny run on a made-up text, and the command as a child process that tests can kill. */
import { spawn, type ChildProcess } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { RunConfigInput } from "../../src/config/run.ts";
import { TokenFile, TokenFileWriter } from "../../src/data/index.ts";
import { Random } from "../../src/util/random.ts";

const main = resolve(import.meta.dirname, "../../src/cli/main.ts");

/** Sentences from a small vocabulary: enough to learn something from in a few steps. */
export function madeUpText(numSentences: number, seed = 1): string {
  const random = new Random(seed);
  const words = "the a cat dog bird tree house river stone cloud sees finds makes takes small large green old quickly never".split(" ");
  const sentence = (): string => Array.from({ length: 3 + random.integer(6) }, () => words[random.integer(words.length)] ?? "").join(" ");
  return Array.from({ length: numSentences }, () => `${sentence()}.\n`).join("");
}

/** `config.json` of a tiny model in Hugging Face form. */
export function tinyModel(kind: "dense" | "moe" | "skywork"): Record<string, unknown> {
  const shared = {
    vocab_size: 300,
    hidden_size: 32,
    intermediate_size: 48,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: false,
    bos_token_id: 0,
    eos_token_id: 0,
  };
  if (kind === "skywork") {
    // Everything that a router of ours has a state for: normalized logits and a selection bias.
    const gate = { moe_use_logits_norm: true, moe_gate_norm_std: 1, moe_gate_norm_eps: 1e-6, moe_selection_bias: true };
    const released = { moe_use_skywork_gating: false, moe_2layer_gate: false, moe_feature_no_mul_topk: true, moe_expert_interval: 1 };
    return { model_type: "skywork_moe", ...shared, num_experts: [4], num_experts_per_tok: 2, ...released, ...gate };
  }
  return kind === "dense"
    ? { model_type: "llama", ...shared }
    : { model_type: "mixtral", ...shared, num_local_experts: 4, num_experts_per_tok: 2, sliding_window: null };
}

/** A run of a tiny model on a text that this writes into `folder`. */
export function tinyRun(folder: string, kind: "dense" | "moe" | "skywork", changes: Partial<RunConfigInput> = {}): RunConfigInput {
  mkdirSync(folder, { recursive: true });
  const text = join(folder, "text.txt");
  writeFileSync(text, madeUpText(400));
  return {
    model: { config: tinyModel(kind) },
    newTokenizer: { vocabSize: 300 },
    data: { train: [{ path: text }], sequenceLength: 32 },
    batchSequences: 4,
    numSteps: 6,
    optimizer: { learningRate: 3e-3 },
    ...changes,
  };
}

/** A token file of random ids below 300, as documents of various lengths of which a good part bears no loss. */
export function unevenTokens(folder: string): TokenFile {
  const random = new Random(3);
  const path = join(folder, "uneven.tokens");
  using writer = new TokenFileWriter(path, { vocabSize: 300 });
  for (let document = 0; document < 60; document++) {
    const length = 1 + random.integer(40);
    const share = random.uniform();
    const ids = Int32Array.from({ length }, () => random.integer(300));
    writer.append(
      ids,
      Uint8Array.from({ length }, () => (random.uniform() < share ? 1 : 0)),
    );
  }
  writer.finish("uneven");
  return new TokenFile(path);
}

export interface Finished {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** `moe train` in a process of its own. */
export class TrainProcess {
  readonly child: ChildProcess;
  readonly finished: Promise<Finished>;
  #stdout = "";
  #stderr = "";
  readonly #waiting: (() => void)[] = [];

  /** `limit`: bash's `ulimit -f`, in KiB. */
  constructor(args: readonly string[], { env = {}, limit }: { env?: Record<string, string>; limit?: number } = {}) {
    const command = [process.execPath, main, "train", ...args];
    const [file = "", ...rest] = limit === undefined ? command : ["bash", "-c", `ulimit -f ${limit} && exec "$@"`, "bash", ...command];
    this.child = spawn(file, rest, { env: { ...process.env, MOE_THREADS: "1", ...env }, stdio: ["ignore", "pipe", "pipe"] });
    this.child.stdout?.on("data", (chunk: Buffer) => {
      this.#stdout += chunk.toString();
    });
    this.child.stderr?.on("data", (chunk: Buffer) => {
      this.#stderr += chunk.toString();
      for (const check of this.#waiting) check();
    });
    this.finished = new Promise((done) => {
      this.child.on("close", (code, signal) => {
        done({ code, signal, stdout: this.#stdout, stderr: this.#stderr });
        for (const check of this.#waiting) check();
      });
    });
  }

  /** Waits until the standard error holds `pattern` this many times, or the process has ended. */
  async seen(pattern: RegExp, times = 1): Promise<void> {
    await new Promise<void>((done) => {
      const check = (): void => {
        const ended = this.child.exitCode !== null || this.child.signalCode !== null;
        if (ended || (this.#stderr.match(new RegExp(pattern, "g")) ?? []).length >= times) done();
      };
      this.#waiting.push(check);
      check();
    });
  }
}

/** Runs `moe train` to its end. */
export async function runTrain(args: readonly string[], options: { env?: Record<string, string>; limit?: number } = {}): Promise<Finished> {
  return await new TrainProcess(args, options).finished;
}

export function writeConfig(path: string, config: unknown): string {
  writeFileSync(path, JSON.stringify(config));
  return path;
}

/** What must be equal when two runs did the same: bytes of weights, and of moments with masters; and the coefficients' f64. */
export function trainedBytes(checkpoint: string): { weights: string; optimizer: string; coefficients: unknown } {
  const hex = (name: string): string => readFileSync(join(checkpoint, name)).toString("base64");
  const { coefficients } = JSON.parse(readFileSync(join(checkpoint, "state.json"), "utf8")) as { coefficients: unknown };
  return { weights: hex("model.safetensors"), optimizer: hex("optimizer.safetensors"), coefficients };
}
export function checkpointOf(run: string, step: number): string {
  return join(run, "checkpoints", `step-${String(step).padStart(8, "0")}`);
}
