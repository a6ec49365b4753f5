import { describe, expect, it } from "vitest";
import {
  checkLayoutBatch,
  checkLayoutModel,
  completeLayout,
  expertReplicas,
  numRanks,
  parseLayout,
  stagesOf,
  type Layout,
} from "./layout.ts";
import { modelPresets } from "./model-presets.ts";
import { parseRunConfig } from "./run.ts";

const layout = (value: object): Layout => completeLayout(parseLayout(value), "layout");
const mixtral = modelPresets["mixtral-8x7b"];

describe("layouts", () => {
  it.each([
    [
      { dp: 2, tp: 4 },
      { ep: 4, etp: 1, replicas: 2 },
    ],
    [
      { dp: 2, tp: 4, strategy: "EP" },
      { ep: 8, etp: 1, replicas: 1 },
    ],
    [
      { dp: 2, tp: 4, strategy: "EP", ep: 4 },
      { ep: 4, etp: 1, replicas: 2 },
    ],
    [
      { dp: 2, tp: 4, strategy: "ETP" },
      { ep: 2, etp: 4, replicas: 1 },
    ],
    [
      { dp: 2, tp: 4, strategy: "TP" },
      { ep: 1, etp: 4, replicas: 2 },
    ],
    [
      { dp: 4, tp: 2, strategy: "ETP", ep: 2, etp: 2 },
      { ep: 2, etp: 2, replicas: 2 },
    ],
  ])("%j has the expert degrees of its strategy", (value, { ep, etp, replicas }) => {
    const full = layout(value);
    expect([full.ep, full.etp, expertReplicas(full), numRanks(full)]).toEqual([ep, etp, replicas, 8]);
  });
  it("cuts layers as evenly as can be unless they are given, and spreads recomputation from the first layer", () => {
    expect(stagesOf(layout({ pp: 3 }), 7, 4)).toEqual([
      { firstLayer: 0, numLayers: 3, recompute: 3 },
      { firstLayer: 3, numLayers: 2, recompute: 1 },
      { firstLayer: 5, numLayers: 2, recompute: 0 },
    ]);
    expect(stagesOf(layout({ pp: 2, layers: [5, 2], recompute: [2, 0] }), 7, 0)).toEqual([
      { firstLayer: 0, numLayers: 5, recompute: 2 },
      { firstLayer: 5, numLayers: 2, recompute: 0 },
    ]);
  });
  it.each([
    [{ stratgy: "EP" }, 'unknown key "stratgy" (did you mean "strategy"?)'],
    [{ tp: 0 }, "tp: "],
    [{ dp: 2, tp: 2, ep: 4 }, "ep 4 contradicts strategy EDP, whose ep is tp (2)"],
    [{ dp: 2, tp: 2, strategy: "TP", etp: 4 }, "etp 4 contradicts strategy TP, whose etp is tp (2)"],
    [{ dp: 2, tp: 2, strategy: "EP", ep: 3 }, "ep 3 * etp 1 does not divide dp 2 * tp 2"],
    [{ pp: 2, interleave: 2 }, 'interleave 2 with schedule "1f1b"'],
    [{ schedule: "interleaved", interleave: 2 }, "interleave 2 needs a pipeline, got pp 1"],
    [{ pp: 2, layers: [1, 2, 3] }, "layers [1, 2, 3] has 3 entries for pp 2 * interleave 1 = 2 stages"],
    [{ pp: 2, layers: [4, 0] }, "stage 1 has no layer"],
    [{ sequenceParallel: true }, "sequenceParallel needs tp of at least 2"],
  ])("%j is refused: %s", (value, message) => {
    expect(() => layout(value)).toThrow(message);
  });
  it.each([
    [{ pp: 33 }, "pp 33 * interleave 1 = 33 stages for 32 layers"],
    [{ pp: 2, layers: [16, 15] }, "layers [16, 15] add up to 31, the model has 32"],
    [{ pp: 2, layers: [31, 1], recompute: [0, 2] }, "recompute 2 of stage 1, which has 1 layers"],
    [{ dp: 3, tp: 3, strategy: "EP" }, "ep 9 (strategy EP) is above the 8 experts of a layer"],
  ])("%j does not fit Mixtral: %s", (value, message) => {
    expect(() => checkLayoutModel(layout(value), mixtral)).toThrow(message);
  });
  it("warns where an expert strategy is given for a dense model", () => {
    expect(checkLayoutModel(layout({ tp: 2, strategy: "TP" }), modelPresets["smollm2-135m"])).toHaveLength(1);
    expect(checkLayoutModel(layout({ tp: 2 }), modelPresets["smollm2-135m"])).toEqual([]);
  });
  it("refuses batches whose balance groups it would split, and halves that are no whole groups", () => {
    const work = { batchSequences: 8, microBatchSequences: 4, balanceGroupSequences: 4 };
    expect(() => checkLayoutBatch(layout({ dp: 4 }), work, "run")).toThrow("would split a balance group");
    expect(() => checkLayoutBatch(layout({ dp: 2 }), work, "run")).not.toThrow();
    expect(() => checkLayoutBatch(layout({ tp: 2, overlap: true }), work, "run")).toThrow(
      "layout.overlap splits a micro-batch between balance groups",
    );
  });
  it("stands in a run's configuration as it was given, so that one field can be changed when the run goes on", () => {
    const run = {
      model: { from: "m" },
      data: { train: [{ path: "t" }], sequenceLength: 8 },
      batchSequences: 8,
      numSteps: 1,
      optimizer: { learningRate: 1 },
    };
    const config = parseRunConfig({ ...run, layout: { dp: 2, tp: 2 } });
    expect(config.microBatchSequences).toBe(4);
    expect(parseRunConfig({ ...config, layout: { ...config.layout, tp: 4 } }).layout.tp).toBe(4);
    expect(parseRunConfig({ ...run, layout: { dp: 2, microBatchSequences: 1 } }).microBatchSequences).toBe(1);
    expect(() => parseRunConfig({ ...run, layout: { dp: 3 } })).toThrow("layout.dp 3 does not divide batchSequences 8");
  });
});
