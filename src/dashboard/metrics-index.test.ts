import { describe, expect, test } from "vitest";
import { evaluationSeries, expertLoads, layerExperts, layerGrid, layerSeries, scalarSeries, similaritySeries } from "./answers.ts";
import { MetricsIndex, similarityMatrix } from "./metrics-index.ts";

function index(...records: readonly unknown[]): MetricsIndex {
  const made = new MetricsIndex();
  let offset = 0;
  for (const record of records) {
    const text = typeof record === "string" ? record : JSON.stringify(record);
    made.add({ text, offset, length: text.length });
    offset += text.length + 1;
  }
  return made;
}
const step = (n: number, extra: object = {}): object => ({
  type: "step",
  step: n,
  loss: 10 / n,
  mfu: null,
  layers: [
    { layer: 1, dropRate: 0.1 * n, coefficient: 0.01, switchLoss: null, load: [0.5, 0.5 - 0.01 * n, 0.01 * n] },
    { layer: 3, dropRate: 0.2, coefficient: 0.02, load: [0.25, 0.75] },
  ],
  ...extra,
});
const everything = { from: 0, to: Number.MAX_SAFE_INTEGER, points: 100 };

describe("an index of metrics", () => {
  test("gives back the scalars, the layers and the loads that were written", () => {
    const made = index(...[1, 2, 3, 4].map((n) => step(n)));
    expect(scalarSeries(made, ["loss", "mfu", "nothing"], everything)).toEqual({
      steps: [1, 2, 3, 4],
      series: { loss: { mean: [10, 5, 3.3333, 2.5] } },
    });
    expect(made.layers).toEqual([
      { layer: 1, numExperts: 3 },
      { layer: 3, numExperts: 2 },
    ]);
    expect(layerSeries(made, 1, ["dropRate", "coefficient"], { ...everything, from: 2, to: 3 })).toEqual({
      steps: [2, 3],
      series: { dropRate: { mean: [0.2, 0.3] }, coefficient: { mean: [0.01, 0.01] } },
    });
    expect(layerGrid(made, "dropRate", { ...everything, points: 2 })).toEqual({
      key: "dropRate",
      steps: [2, 4],
      layers: [1, 3],
      values: [
        [0.15, 0.35],
        [0.2, 0.2],
      ],
    });
    expect(layerExperts(made, 1, everything)?.load[2]).toEqual([0.01, 0.02, 0.03, 0.04]);
    expect(layerExperts(made, 2, everything)).toBeNull();
  });

  test("tells loads of the record at or before a step, or their mean over a span", () => {
    const made = index(step(1), step(5), step(9));
    expect(expertLoads(made, { from: null, to: 7 })).toMatchObject({
      from: 5,
      to: 5,
      numRecords: 1,
      layers: [{ load: [0.5, 0.45, 0.05] }, {}],
    });
    expect(expertLoads(made, { from: 2, to: 100 })).toMatchObject({
      from: 5,
      to: 9,
      numRecords: 2,
      layers: [{ load: [0.5, 0.43, 0.07] }, {}],
    });
    expect(expertLoads(made, { from: null, to: 0 })).toEqual({ from: null, to: null, numRecords: 0, layers: [] });
    expect(expertLoads(index(), { from: null, to: 10 }).layers).toEqual([]);
  });

  test("keeps evaluations by name and similarity by layer, and reads a matrix from its line", () => {
    const similarity = (n: number): object => ({
      type: "similarity",
      step: n,
      layers: [
        {
          layer: 1,
          gates: [0.7, 0.3],
          weights: {
            mean: 0.5,
            matrix: [
              [1, 0.5],
              [0.5, 1],
            ],
          },
          outputs: {
            mean: 0.25,
            matrix: [
              [1, 0.25],
              [0.25, 1],
            ],
          },
        },
      ],
    });
    const made = index(
      { type: "evaluation", step: 2, name: "held", loss: 3, standardError: 0.1 },
      { type: "evaluation", step: 4, name: "held", loss: 2, standardError: 0.1 },
      similarity(0),
      similarity(4),
    );
    expect(evaluationSeries(made, 100)).toEqual([{ name: "held", steps: [2, 4], loss: [3, 2], standardError: [0.1, 0.1] }]);
    expect(evaluationSeries(made, 1)).toMatchObject([{ steps: [4] }]);
    expect(similaritySeries(made, 100)).toEqual({ steps: [0, 4], layers: [{ layer: 1, weights: [0.5, 0.5], outputs: [0.25, 0.25] }] });
    const text = JSON.stringify(similarity(4));
    expect(similarityMatrix(text, 1)).toEqual({
      step: 4,
      layer: 1,
      weights: [
        [1, 0.5],
        [0.5, 1],
      ],
      outputs: [
        [1, 0.25],
        [0.25, 1],
      ],
      gates: [0.7, 0.3],
    });
    expect(similarityMatrix(text, 2)).toBeNull();
  });

  test("takes numbers that later versions write, nested ones by their path", () => {
    const made = index(step(1, { traffic: { tp: { bytes: 100, calls: 2 }, dp: { bytes: 50 } }, note: "x" }), step(2, { new: 7 }));
    expect(scalarSeries(made, ["traffic.tp.bytes", "new"], everything).series).toEqual({
      "traffic.tp.bytes": { mean: [100, null] },
      new: { mean: [null, 7] },
    });
  });

  test("passes over lines that are no records, counts them and quotes the first", () => {
    const made = index(
      "",
      "{torn",
      "[1]",
      '"text"',
      { loss: 1 },
      { step: 1 },
      { type: "step", step: -1 },
      { type: "step", step: 1.5 },
      step(3),
      step(2),
      { type: "later", step: 9 },
    );
    expect([made.badLines, made.numRows]).toEqual([8, 1]);
    expect(made.firstProblem).toBe('a line that is not a JSON object at byte 1: "{torn"');
  });

  test("survives whatever JSON there is: deep, huge, of other types, with keys of objects' own", () => {
    const deep = `{"type":"step","step":1,"loss":${"[".repeat(200_000)}${"]".repeat(200_000)}}`;
    const made = index(
      deep,
      '{"type":"step","step":2,"loss":1e999,"gradNorm":-1e400,"tokens":1e308,"__proto__":{"polluted":1},"constructor":5}',
      { type: "step", step: 3, loss: "text", layers: "none" },
      { type: "step", step: 4, layers: [null, 7, { layer: "0" }, { layer: 0, load: [1e300, 2] }, { layer: 0, load: [] }] },
      { type: "step", step: 5, layers: [{ layer: 0, dropRate: 1e300, load: [0.5, "x"] }] },
      { type: "step", step: Number.MAX_SAFE_INTEGER },
      { type: "evaluation", step: 1, name: 7 },
      { type: "similarity", step: 1, layers: [{ layer: 0 }] },
      { type: "similarity", step: 1 },
      ...Array.from({ length: 400 }, (_, i) => ({ type: "step", step: 100 + i, [`k${i}`]: i })),
    );
    expect(made.scalars.size).toBeLessThanOrEqual(256);
    expect(({} as { polluted?: number }).polluted).toBeUndefined();
    const answers = JSON.stringify([
      scalarSeries(made, [...made.scalars.keys(), "__proto__", "constructor"], everything),
      layerGrid(made, "dropRate", everything),
      expertLoads(made, { from: 0, to: Number.MAX_SAFE_INTEGER }),
      layerExperts(made, 0, everything),
      evaluationSeries(made, 10),
      similaritySeries(made, 10),
    ]);
    expect(answers).not.toMatch(/NaN|Infinity/);
  });
});
