/**
 * The losses of a few training steps, for comparison with committed files: `torchCurve` repeats `make.py`, `curve` is a dense
 * and a MoE model from our own initialization, whose bits each refactoring must keep.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fromHuggingFaceConfig } from "../../../src/config/model-huggingface.ts";
import { parseRunConfig, type RunConfigInput } from "../../../src/config/run.ts";
import { Dataset, TokenFile, TokenFileWriter } from "../../../src/data/index.ts";
import { Decoder, loadModel } from "../../../src/model/index.ts";
import type { Engine } from "../../../src/tensor/index.ts";
import { Trainer } from "../../../src/train/index.ts";

const vocabSize = 96;
const sequenceLength = 16;
const batchSequences = 4;
/** Steps of `make.py`, and of our own curves. */
const torchSteps = 20;
const ownSteps = 12;

/** As in `make.py`. */
function tokens(count: number): number[] {
  let state = 12345n;
  const out: number[] = [];
  for (let i = 0; i < count; i++) {
    state = (1103515245n * state + 12345n) % 2n ** 31n;
    out.push(i % 3 === 0 ? 12 * (Number(state >> 16n) % 8) : (out[i - 1] ?? 0) + 1);
  }
  return out;
}

export interface Curve {
  readonly losses: readonly number[];
  readonly gradNorms: readonly number[];
}

/** Trains `model` on one document of these tokens, in their order. */
function trainOn(model: Decoder, numSteps: number, changes: Partial<RunConfigInput>): Curve {
  const folder = mkdtempSync(join(tmpdir(), "moe-curve-"));
  try {
    const path = join(folder, "tokens");
    {
      using writer = new TokenFileWriter(path, { vocabSize });
      writer.append(tokens(torchSteps * batchSequences * sequenceLength + 1));
      writer.finish("curve");
    }
    using file = new TokenFile(path);
    const config = parseRunConfig({
      model: { config: {} },
      data: { train: [{ path }], sequenceLength },
      batchSequences,
      numSteps,
      optimizer: { learningRate: 1e-2, weightDecay: 0.1, clipNorm: 1 },
      schedule: { name: "cosine", warmupSteps: 4, finalFraction: 0.1 },
      ...changes,
    });
    using trainer = new Trainer(config, model, new Dataset(file, { sequenceLength, seed: 1, shuffle: false }), { peakFlops: null });
    const steps = Array.from({ length: numSteps }, () => trainer.step());
    return { losses: steps.map(({ loss }) => loss), gradNorms: steps.map(({ gradNorm }) => gradNorm) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** What `make.py` does, with our trainer: the same weights, data, AdamW, clipping and schedule; in two micro-batches. */
export function torchCurve(engine: Engine): Curve {
  using model = loadModel(engine, join(import.meta.dirname, "dense"), { dtype: "f32", mapped: false });
  return trainOn(model, torchSteps, { microBatchSequences: 2 });
}

export const kinds = ["dense", "moe"] as const;
export type Kind = (typeof kinds)[number];

/** Losses in f32 of a tiny model from our own initialization, each as the 16 hexadecimal digits of its 64 bits. */
export function curve(engine: Engine, kind: Kind): string[] {
  const shared = {
    vocab_size: vocabSize,
    hidden_size: 40,
    intermediate_size: 56,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 32,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    initializer_range: 0.05,
    bos_token_id: 0,
    eos_token_id: 0,
  };
  const json =
    kind === "dense"
      ? { model_type: "llama", ...shared, tie_word_embeddings: true }
      : { model_type: "mixtral", ...shared, tie_word_embeddings: false, sliding_window: null, num_local_experts: 5, num_experts_per_tok: 2 };
  using model = Decoder.initialize(engine, fromHuggingFaceConfig(json, kind), { dtype: "f32", seed: 7 });
  const changes: Partial<RunConfigInput> = { microBatchSequences: 2, recomputeLayers: 1, moe: { capacityFactor: kind === "moe" ? 1.2 : null } };
  return trainOn(model, ownSteps, changes).losses.map(hex);
}

function hex(value: number): string {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, value);
  return view.getBigUint64(0).toString(16).padStart(16, "0");
}
export function fromHex(digits: string): number {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigUint64(0, BigInt(`0x${digits}`));
  return view.getFloat64(0);
}
