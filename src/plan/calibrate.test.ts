import { describe, expect, test } from "vitest";
import { findClusterPreset, type EfficiencyConfig } from "../config/cluster.ts";
import { fitEfficiency, fittedKeys, meanError, paddedVocabulary, predictRows, prepareRow, type PreparedRow } from "./calibrate.ts";
import type { Measurement } from "./measurements.ts";
import { softwarePresets } from "./software.ts";

const cluster = findClusterPreset("a100-80");
const software = softwarePresets["megatron-deepspeed"];

/** A grid of small runs on one node, and a few over several. */
function rowsOf(efficiency: EfficiencyConfig, nodes: "one" | "several"): PreparedRow[] {
  const rows: Measurement[] = [];
  for (const hiddenSize of [1024, 4096]) {
    for (const [tp, dp, pp] of [
      [1, 2, 1],
      [2, 2, 2],
      [8, 1, 1],
      [4, 8, 1],
    ] as const) {
      for (const microBatch of [1, 4]) {
        if (nodes === "one" && tp * dp * pp > 8) continue;
        const sizes = {
          numHeads: 16,
          numKvHeads: 16,
          numLayers: 8,
          sequenceLength: 1024,
          vocabSize: 50_257,
          ffnSize: null,
          numExperts: 0,
          topK: 0,
          ep: 1,
          zero: 0,
        } as const;
        rows.push({
          ...sizes,
          line: rows.length + 2,
          numDevices: tp * dp * pp,
          batchSequences: 64,
          microBatch,
          hiddenSize,
          tp,
          dp,
          pp,
          recompute: null,
          seconds: 1,
        });
      }
    }
  }
  const prepared = rows.map((row) => prepareRow(row, software, "none"));
  const seconds = predictRows(prepared, { ...cluster, efficiency });
  return prepared.map((row, i) => ({ ...row, seconds: seconds[i] ?? 0 }));
}

describe("calibration", () => {
  test("finds the constants from which times were made", () => {
    const made = { ...cluster.efficiency, gemm: 0.65, memory: 0.55, hostSeconds: 50e-6, intraStepSeconds: 25e-6 };
    const rows = rowsOf(made, "one");
    const found = fitEfficiency(rows, { cluster, minimizer: { restarts: 4, iterations: 300 } });
    expect(meanError(predictRows(rows, { ...cluster, efficiency: found }), rows)).toBeLessThan(0.01);
    expect(found.gemm).toBeCloseTo(0.65, 1);
    expect(found.memory).toBeCloseTo(0.55, 1);
    expect(found.hostSeconds / 50e-6).toBeCloseTo(1, 1);
    expect(found.intraStepSeconds / 25e-6).toBeCloseTo(1, 0);
    // And the same every time.
    expect(fitEfficiency(rows, { cluster, minimizer: { restarts: 4, iterations: 300 } })).toEqual(found);
  });

  test("fits only what the rows can tell, and leaves the rest as the cluster says", () => {
    const rows = rowsOf(cluster.efficiency, "one");
    const alone = rows.filter(({ layout }) => layout.tp === 1);
    expect(fittedKeys(alone, cluster)).toEqual(["gemm", "memory", "kernelSeconds", "hostSeconds"]);
    expect(fittedKeys(rows, cluster)).toContain("intraStepSeconds");
    expect(fittedKeys(rowsOf(cluster.efficiency, "several"), cluster)).toContain("interLink");
    const { intraLink, interLink, intraStepSeconds, overlap } = fitEfficiency(alone, {
      cluster,
      minimizer: { restarts: 1, iterations: 20 },
    });
    expect({ intraLink, interLink, intraStepSeconds, overlap }).toEqual({
      intraLink: cluster.efficiency.intraLink,
      interLink: cluster.efficiency.interLink,
      intraStepSeconds: cluster.efficiency.intraStepSeconds,
      overlap: cluster.efficiency.overlap,
    });
  });

  test("rows of the same shapes share their layers' cost without changing it", () => {
    const rows = rowsOf(cluster.efficiency, "several");
    expect(predictRows(rows, cluster)).toEqual(rows.map((row) => predictRows([row], cluster)[0]));
  });

  test("the vocabulary is padded to 128 rows a tensor-parallel rank", () => {
    expect([1, 2, 4, 8].map((tp) => paddedVocabulary(50_257, tp))).toEqual([50_304, 50_432, 50_688, 51_200]);
  });
});
