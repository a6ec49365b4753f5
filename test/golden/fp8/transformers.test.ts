/**
 * FP8 folders of layout huggingface are read by transformers, which dequantizes them on a CPU: its logits are those of our dequantized model. Skips visibly where
 * MOE_PYTHON names no Python with PyTorch, transformers and accelerate.
 */
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { loadBackend } from "../../../src/backend/load.ts";
import { modelPresets } from "../../../src/config/model-presets.ts";
import { plainRouting, type ModelConfig } from "../../../src/config/model.ts";
import { batchOfDocuments, Decoder, loadModel, quantizeModel, saveModel } from "../../../src/model/index.ts";
import { Engine } from "../../../src/tensor/index.ts";

const python = process.env["MOE_PYTHON"] ?? "";
const canRead = python !== "" && spawnSync(python, ["-c", "import accelerate, torch, transformers"], { timeout: 120_000 }).status === 0;
const ids = [1, 5, 9, 2, 7, 33, 60];
const script = `
import json, sys, torch, transformers
transformers.logging.set_verbosity_error()
out = []
for path in sys.argv[2:]:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).float()
    with torch.no_grad():
        out.append(model(torch.tensor([json.loads(sys.argv[1])])).logits[0].flatten().tolist())
print("RESULT" + json.dumps(out))
`;

test.skipIf(!canRead)(
  `transformers gives the logits of what we quantized${canRead ? "" : " (skipped: MOE_PYTHON names no Python with torch, transformers and accelerate)"}`,
  { timeout: 300_000 },
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "moe-fp8-"));
    try {
      using engine = new Engine(await loadBackend({ numThreads: 1 }));
      const size = { vocabSize: 61, hiddenSize: 256, ffnSize: 128, numLayers: 2, numHeads: 4, numKvHeads: 2, headDim: 64, maxPositions: 64 };
      const paths: string[] = [];
      const ours: Float32Array[] = [];
      for (const architecture of ["llama", "mixtral", "qwen3_moe"] as const) {
        const moe = architecture === "llama" ? null : { ...plainRouting, numExperts: 3, topK: 2, expertFfnSize: 128 };
        const qkNorm = architecture === "qwen3_moe" ? "head" : "none";
        const config: ModelConfig = { ...modelPresets["mixtral-8x7b"], ...size, architecture, moe, qkNorm, initStd: 0.1 };
        const plain = join(folder, architecture);
        {
          using model = Decoder.initialize(engine, config, { dtype: "bf16", seed: 5 });
          saveModel(model, plain);
        }
        for (const scales of ["tensor", "block128"] as const) {
          const out = `${plain}-${scales}`;
          quantizeModel(engine, plain, out, { scales, layout: "huggingface" });
          using model = loadModel(engine, out, { dtype: "f32", quantized: "dequantize" });
          paths.push(out);
          ours.push(engine.scope(() => model.logits(model.forwardHidden(batchOfDocuments(engine, [ids], model.config)).hidden_TH).toFloat32Array()));
        }
      }
      const output = execFileSync(python, ["-c", script, JSON.stringify(ids), ...paths], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
      const theirs = JSON.parse(output.slice(output.indexOf("RESULT") + 6)) as number[][];
      for (const [i, path] of paths.entries()) {
        const [a, b] = [ours[i] ?? new Float32Array(0), theirs[i] ?? []];
        expect(b.length).toBe(a.length);
        const largest = a.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        expect(Math.max(...a.map((value, j) => Math.abs(value - (b[j] ?? 0)))) / largest, path).toBeLessThan(1e-5);
      }
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
);
