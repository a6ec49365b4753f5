import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { createReferenceBackend } from "../backend/reference/index.ts";
import { fromHuggingFaceConfig } from "../config/model-huggingface.ts";
import { Engine } from "../tensor/index.ts";
import { RotaryEmbedding, rotaryFrequencies, type RotaryOptions } from "./rope.ts";

interface Case {
  readonly rope_parameters: Readonly<Record<string, unknown>>;
  readonly seq_len: number | null;
  readonly inv_freq: readonly number[];
  readonly attention_factor: number;
}
const cases = JSON.parse(readFileSync(join(import.meta.dirname, "../../test/golden/models/rope.json"), "utf8")) as Case[];

test.each(cases)("frequencies of $rope_parameters at length $seq_len are those of transformers", (golden) => {
  const config = fromHuggingFaceConfig({ ...golden, model_type: "llama", vocab_size: 10, intermediate_size: 4, num_hidden_layers: 1 });
  const options = { theta: config.ropeTheta, headDim: config.headDim, scaling: config.ropeScaling, maxPositions: config.maxPositions };
  const { invFreq, attentionScale } = rotaryFrequencies(options, golden.seq_len ?? config.maxPositions);
  expect(invFreq.length).toBe(golden.inv_freq.length);
  // Ours are rounded once from f64; theirs are powers in f32.
  for (const [j, expected] of golden.inv_freq.entries()) expect(Math.abs((invFreq[j] ?? 0) / expected - 1)).toBeLessThan(1e-6);
  expect(attentionScale).toBeCloseTo(golden.attention_factor, 6);
});

function rotary(engine: Engine, scaling: RotaryOptions["scaling"]): RotaryEmbedding {
  return new RotaryEmbedding(engine, { theta: 10_000, headDim: 4, scaling, maxPositions: 16 });
}

test("a table grows with the positions asked for, keeps its values and is freed", () => {
  using engine = new Engine(createReferenceBackend());
  const embedding = rotary(engine, null);
  const first = embedding.forLength(3).toFloat32Array();
  const grown = embedding.forLength(500);
  expect(grown.dim(0)).toBeGreaterThanOrEqual(500);
  expect(grown.toFloat32Array().subarray(0, first.length)).toEqual(first);
  // Position 1, pair 0: angle 1.
  expect(first[4]).toBeCloseTo(Math.cos(1), 6);
  expect(first[5]).toBeCloseTo(Math.sin(1), 6);
  embedding[Symbol.dispose]();
  expect(engine.backend.liveBytes).toBe(0);
});

test("dynamic scaling is exact for each length beyond training, plain within it, and refused with a cache", () => {
  using engine = new Engine(createReferenceBackend());
  using embedding = rotary(engine, { type: "dynamic", factor: 2 });
  const plain = embedding.forLength(16).toFloat32Array();
  const longer = embedding.forLength(20);
  expect(longer.dim(0)).toBe(20);
  const stretched = longer.toFloat32Array();
  expect(stretched.subarray(0, plain.length)).not.toEqual(plain);
  expect(embedding.forLength(40).toFloat32Array().subarray(0, stretched.length)).not.toEqual(stretched);
  expect(embedding.forLength(10).toFloat32Array()).toEqual(plain);
  expect(() => embedding.forLength(17, { incremental: true })).toThrow(/KV cache beyond 16 positions/);
  expect(embedding.forLength(16, { incremental: true }).toFloat32Array()).toEqual(plain);
});
