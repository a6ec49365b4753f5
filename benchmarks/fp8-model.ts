/**
 * The model of the `inference` rows, in the three forms that they compare, made once in the cache folder: SmolLM2-135M (the values of its Q4_1
 * file) upcycled to 8 experts of which 2 are chosen, as `mixtral`, without gating normalization.
 *
 * - `bf16`: a folder of safetensors, what both others are made of;
 * - `fp8`: ours, quantized with channel scales, everything else at its default;
 * - `gguf`: exported in BF16, then Q8_0 by llama.cpp's own `llama-quantize`.
 *
 * A form that exists is used again: the folder's name carries a hash of the sources that decide what is in it.
 */
import { createHash } from "node:crypto";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadBackend } from "../src/backend/load.ts";
import { copyTokenizer, loadTokenizer } from "../src/checkpoint/tokenizer.ts";
import { exportModel, quantizeModel, type QuantizeReport } from "../src/model/index.ts";
import { Engine } from "../src/tensor/index.ts";
import { upcycle } from "../src/upcycle/index.ts";
import { cacheFolder, PythonRival } from "./process.ts";
import { modelPath } from "./text.ts";

const root = join(import.meta.dirname, "..");

/** A program of llama.cpp: in `MOE_LLAMA_CPP`, else where `setup.sh` builds it. Throws where it is not there. */
export function llamaProgram(name: "llama-server" | "llama-quantize"): string {
  const path = join(process.env["MOE_LLAMA_CPP"] || join(import.meta.dirname, ".rival", "bin"), name);
  if (!existsSync(path)) throw new Error(`${path}: no such program; benchmarks/setup.sh builds it`);
  return path;
}

/** Short hash of what the files under these paths say. */
function hashOf(...paths: readonly string[]): string {
  const hash = createHash("sha256");
  for (const path of paths.map((name) => join(root, name)))
    for (const file of path.endsWith(".ts")
      ? [path]
      : readdirSync(path)
          .map((name) => join(path, name))
          .toSorted())
      if (file.endsWith(".ts") && !file.endsWith(".test.ts")) hash.update(readFileSync(file));
  return hash.digest("hex").slice(0, 12);
}

const numExperts = 8;
const topK = 2;

/** The upcycled model in bf16. Needs the Python environment when it is made for the first time. */
export async function upcycledModel(): Promise<string> {
  const folder = join(cacheFolder(), `smollm2-8x2-${hashOf("src/upcycle")}`);
  if (existsSync(folder)) return folder;
  const dense = modelPath();
  if (!existsSync(dense)) {
    using python = new PythonRival();
    await python.call("llama.prepare", { path: dense });
  }
  const tokenizer = await loadTokenizer(dense);
  upcycle(dense, folder, { numExperts, topK, target: "mixtral", gateNormalization: false, dtype: "bf16", seed: 1 }, (out) => {
    copyTokenizer(dense, out, tokenizer);
  });
  return folder;
}

export type Quantized = Pick<QuantizeReport, "quantizedBytes" | "bf16Bytes" | "numBytes">;

/** Ours, in FP8 with channel scales, and what quantizing said of its bytes. */
export async function fp8Model(): Promise<{ path: string; report: Quantized }> {
  const source = await upcycledModel();
  const path = `${source}-fp8-${hashOf("src/quant", "src/model/quantize.ts", "src/model/quantize-plan.ts")}`;
  const reportPath = `${path}.json`;
  if (!existsSync(path) || !existsSync(reportPath)) {
    rmSync(path, { recursive: true, force: true });
    using engine = new Engine(await loadBackend());
    const tokenizer = await loadTokenizer(source);
    const report = quantizeModel(engine, source, path, { scales: "channel" }, (out) => {
      copyTokenizer(source, out, tokenizer);
    });
    writeFileSync(reportPath, JSON.stringify(report));
  }
  return { path, report: JSON.parse(readFileSync(reportPath, "utf8")) as Quantized };
}

/** The rival's, in Q8_0. Throws where llama.cpp's programs are not there. */
export async function q8Model(): Promise<string> {
  const quantize = llamaProgram("llama-quantize");
  const source = await upcycledModel();
  const path = `${source}-q8_0-${hashOf("src/checkpoint/gguf-export.ts", "src/model/export.ts")}.gguf`;
  if (existsSync(path)) return path;
  const [plain, partial] = [`${path}.bf16`, `${path}.partial`];
  exportModel(source, plain, { type: "BF16", tokenizer: await loadTokenizer(source), name: "SmolLM2-135M 8x top-2" });
  execFileSync(quantize, [plain, partial, "Q8_0"], { stdio: ["ignore", "ignore", "pipe"] });
  rmSync(plain);
  renameSync(partial, path);
  return path;
}
