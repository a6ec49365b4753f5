/** The comparison of greedy decoding must itself see a difference: a wrong token, and logits that are off. */
import { afterAll, expect, test } from "vitest";
import { loadBackend } from "../../../src/backend/load.ts";
import { modelPresets } from "../../../src/config/model-presets.ts";
import { batchOfDocuments, Decoder } from "../../../src/model/index.ts";
import { Engine } from "../../../src/tensor/index.ts";
import { compareGreedy } from "./greedy.ts";

const engine = new Engine(await loadBackend());
afterAll(() => {
  engine[Symbol.dispose]();
});
const size = { vocabSize: 40, hiddenSize: 16, ffnSize: 24, numLayers: 1, numHeads: 2, numKvHeads: 1, headDim: 8, maxPositions: 64, initStd: 0.3 };
const prompt = [1, 5, 9];

/** Five largest logits after `ids`, without a cache. */
function topAfter(model: Decoder, ids: readonly number[]): (readonly [number, number])[] {
  const logits = engine.scope(() => {
    const { hidden_TH } = model.forwardHidden(batchOfDocuments(engine, [ids], model.config));
    return model.logits(hidden_TH.rows(ids.length - 1, ids.length)).toFloat32Array();
  });
  return [...logits].map((logit, id) => [id, logit] as const).toSorted((a, b) => b[1] - a[1]).slice(0, 5);
}
/** `count` tokens, the `rank`-th best at position `at` and the best elsewhere. */
function path(model: Decoder, count: number, at: number, rank: number): { ids: number[]; top: (readonly [number, number])[][] } {
  const ids: number[] = [];
  const top: (readonly [number, number])[][] = [];
  for (let i = 0; i < count; i++) {
    const best = topAfter(model, [...prompt, ...ids]);
    top.push(best);
    ids.push(best[i === at ? rank : 0]?.[0] ?? -1);
  }
  return { ids, top };
}

test("the same choices have no ties; another choice is one, with both logits and their gap, and what follows is compared on", () => {
  using model = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size }, { dtype: "f32", seed: 5 });
  const same = path(model, 8, -1, 0);
  const equal = compareGreedy(model, prompt, same.ids, same.top);
  expect(equal.ties).toEqual([]);
  expect(equal.relativeError).toBeLessThan(1e-6);

  const other = path(model, 8, 3, 1);
  const [best, second] = other.top[3] ?? [];
  const { ties } = compareGreedy(model, prompt, other.ids, other.top);
  expect(ties).toHaveLength(1);
  expect(ties[0]).toMatchObject({ position: 3, theirs: { id: second?.[0], logit: second?.[1] }, ours: { id: best?.[0], theirLogit: best?.[1] } });
  const largest = Math.max(...(other.top[3] ?? []).map(([, logit]) => Math.abs(logit)));
  expect(ties[0]?.relativeGap).toBeCloseTo(((best?.[1] ?? 0) - (second?.[1] ?? 0)) / largest, 5);
  expect(ties[0]?.relativeGap).toBeGreaterThan(1e-4);
});

test("logits that are off by a thousandth show", () => {
  using model = Decoder.initialize(engine, { ...modelPresets.quickstart, ...size }, { dtype: "f32", seed: 6 });
  const { ids, top } = path(model, 4, -1, 0);
  const off = top.map((row) => row.map(([id, logit], i) => [id, i === 2 ? logit * 1.001 + 1e-3 : logit] as const));
  expect(compareGreedy(model, prompt, ids, off).relativeError).toBeGreaterThan(2e-4);
});
