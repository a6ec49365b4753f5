import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MoeError } from "../util/errors.ts";
import { parseMeasurements } from "./measurements.ts";

const header =
  "# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,tensor parallelism,data parallelism,pipeline parallelism,iteration time (ms)";
const good = "8,8,2,2048,16,20,1024,4,1,2,160.6";

describe("measurements", () => {
  test("are read by the names of columns, in any order, with and without the optional ones", () => {
    const [row] = parseMeasurements(`${header}\n${good}\n`, "m.csv");
    expect(row).toEqual({
      line: 2,
      name: "",
      numDevices: 8,
      batchSequences: 8,
      microBatch: 2,
      hiddenSize: 2048,
      numHeads: 16,
      numKvHeads: 16,
      numLayers: 20,
      sequenceLength: 1024,
      vocabSize: 50_257,
      ffnSize: null,
      numExperts: 0,
      topK: 0,
      tp: 4,
      dp: 1,
      pp: 2,
      ep: 1,
      etp: 1,
      zero: 0,
      sequenceParallel: false,
      recompute: null,
      stageLayers: null,
      recomputedLayers: null,
      seconds: 0.1606,
      bubbleFraction: null,
    });
    const more = parseMeasurements(`recompute,vocabulary,kv heads,ffn size,${header}\r\nfull,32000,4,5504,${good}\r\n\r\n`, "m.csv");
    const sparse = parseMeasurements(
      `experts,top-k,ffn size,expert parallelism,expert tensor parallelism,zero,${header}\n8,2,5504,2,2,1,${good}`,
      "m.csv",
    );
    expect(sparse).toMatchObject([{ numExperts: 8, topK: 2, ffnSize: 5504, ep: 2, etp: 2, zero: 1 }]);
    const stages = parseMeasurements(
      `name,stage layers,recomputed layers,sequence parallel,bubble,${header}\na,12+8,2+0,1,0.25,${good}`,
      "m.csv",
    );
    expect(stages).toMatchObject([
      { name: "a", stageLayers: [12, 8], recomputedLayers: [2, 0], sequenceParallel: true, bubbleFraction: 0.25 },
    ]);
    expect(more).toMatchObject([{ recompute: "full", vocabSize: 32_000, numKvHeads: 4, ffnSize: 5504, tp: 4, seconds: 0.1606 }]);
  });

  test.each([
    [header, /m.csv: no rows/],
    [`${header},vocabluary\n${good},3`, /line 1: unknown column "vocabluary" \(did you mean "vocabulary"\?\)/],
    [header.replace("micro batch,", ""), /line 1: no column "micro batch"/],
    [`${header},micro batch\n${good},2`, /line 1: column "micro batch" is there twice/],
    [`${header}\n${good}\n8,8,2,2048`, /line 3: expected 11 values, got 4/],
    [`${header}\n${good.replace("160.6", "fast")}`, /line 2: iteration time \(ms\): expected a positive number, got "fast"/],
    [`${header}\n${good.replace("160.6", "-1")}`, /line 2: iteration time .*got "-1"/],
    [`${header}\n${good.replace(",20,", ",20.5,")}`, /line 2: # layers: expected a whole number, got "20.5"/],
    [`${header}\n${good.replace(",20,", ",99999999999,")}`, /line 2: # layers: expected at most 100000, got 99999999999/],
    [`${header}\n\n16,8,2,2048,16,20,1024,4,1,2,160`, /line 3: tensor 4 \* data 1 \* pipeline 2 parallelism is 8, not 16 GPUs/],
    [`${header}\n8,9,2,2048,16,20,1024,4,1,2,160`, /line 2: data parallelism 1 \* micro batch 2 does not divide the global batch 9/],
    [`${header}\n32,8,2,2048,16,2,1024,4,1,8,160`, /line 2: pipeline parallelism 8 for 2 layers/],
    [`zero,${header}\n4,${good}`, /line 2: zero: expected 0, 1, 2 or 3, got "4"/],
    [`experts,${header}\n8,${good}`, /line 2: 8 experts without their ffn size/],
    [`experts,top-k,ffn size,${header}\n8,9,1024,${good}`, /line 2: top-k 9 of 8 experts/],
    [`expert parallelism,${header}\n4,${good}`, /line 2: top-k 0 and expert parallelism 4 without experts/],
    [
      `experts,top-k,ffn size,expert parallelism,${header}\n8,2,1024,3,${good}`,
      /line 2: expert parallelism 3 with 8 experts on data 1 \* tensor 4 parallelism/,
    ],
    [
      `experts,top-k,ffn size,expert parallelism,expert tensor parallelism,${header}\n8,2,1024,4,2,${good}`,
      /line 2: expert parallelism 4 \* expert tensor parallelism 2 with 8 experts on data 1 \* tensor 4 parallelism/,
    ],
    [`stage layers,${header}\n12-8,${good}`, /line 2: stage layers: expected a whole number for each stage, as 5\+3, got "12-8"/],
    [`stage layers,${header}\n12+9,${good}`, /line 2: stage layers 12\+9 of 20 layers/],
    [`stage layers,${header}\n20+0,${good}`, /line 2: stage layers 20\+0 of 20 layers/],
    [`stage layers,${header}\n10+5+5,${good}`, /line 2: stage layers 10\+5\+5 are of 3 stages, pipeline parallelism is 2/],
    [`recomputed layers,${header}\n0+11,${good}`, /line 2: recomputed layers 0\+11: stage 1 has 10/],
    [`sequence parallel,${header}\nyes,${good}`, /line 2: sequence parallel: expected 0 or 1, got "yes"/],
    [`sequence parallel,${header}\n1,8,8,2,2048,16,20,1024,1,4,2,160`, /line 2: sequence parallel with tensor parallelism 1/],
    [`bubble,${header}\n1,${good}`, /line 2: bubble: expected a share of at least 0 and below 1, got "1"/],
    [`recompute,${header}\nsome,${good}`, /line 2: recompute: expected none, selective, full, got "some"/],
  ])("a file that begins %j is refused with the line and the next step", (text, message) => {
    expect(() => parseMeasurements(text, "m.csv")).toThrow(message);
  });

  test("whatever a file holds, the answer is rows or an error of ours", () => {
    const cell = fc.oneof(fc.string({ maxLength: 5 }), fc.integer().map(String), fc.constantFrom("", "NaN", "1e999", "-0"));
    fc.assert(
      fc.property(fc.array(fc.array(cell, { maxLength: 12 }), { maxLength: 4 }), (rows) => {
        const text = [header, ...rows.map((row) => row.join(","))].join("\n");
        try {
          expect(parseMeasurements(text, "m.csv").every(({ seconds }) => seconds > 0)).toBe(true);
        } catch (error) {
          expect(error).toBeInstanceOf(MoeError);
        }
      }),
      { numRuns: 300 },
    );
  });
});
