import { describe, expect, test } from "vitest";
import { findClusterPreset, type EfficiencyConfig } from "../config/cluster.ts";
import { calibrateCluster, fitEfficiency, fittedKeys, meanError, predictRows, prepareRow, type PreparedRow } from "./calibrate.ts";
import { parseMeasurements, type Measurement } from "./measurements.ts";
import { paddedVocabulary } from "./megatron-arguments.ts";
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
          etp: 1,
          zero: 0,
          name: "",
          sequenceParallel: false,
          stageLayers: null,
          recomputedLayers: null,
          bubbleFraction: null,
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

  test("a core that is its own host, its attention and what cores leave each other are found from runs of one and two", () => {
    const cores = findClusterPreset("cpu");
    const header =
      "# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,ffn size,tensor parallelism,data parallelism,pipeline parallelism,iteration time (ms)";
    const shapes = [256, 512, 1024].flatMap((hidden) =>
      [128, 1024].flatMap((length) =>
        ["1,1,1", "2,1,1", "1,2,1", "1,1,2"].map((degrees) => {
          const size = degrees.split(",").reduce((product, degree) => product * Number(degree), 1);
          return `${size},8,2,${hidden},4,4,${length},${4 * hidden},${degrees},1`;
        }),
      ),
    );
    const empty = parseMeasurements([header, ...shapes].join("\n"), "made").map((row) =>
      prepareRow(row, softwarePresets["moe.ts"], "none"),
    );
    expect(fittedKeys(empty, cores)).toEqual(["gemm", "memory", "kernelSeconds", "intraStepSeconds", "attention", "together"]);
    const made = { ...cores.efficiency, gemm: 0.7, memory: 0.5, attention: 0.35, together: 0.85 };
    const seconds = predictRows(empty, { ...cores, efficiency: made });
    // Cores wait for each other differently in layouts of as many of them.
    expect(predictRows(empty.toReversed(), { ...cores, efficiency: made }).toReversed()).toEqual(seconds);
    const rows = empty.map((row, i) => ({ ...row, seconds: seconds[i] ?? 0 }));
    const found = fitEfficiency(rows, { cluster: cores, minimizer: { restarts: 3, iterations: 300 } });
    expect(meanError(predictRows(rows, { ...cores, efficiency: found }), rows)).toBeLessThan(0.02);
    expect(found.together).toBeCloseTo(0.85, 1);
    expect(found.attention).toBeCloseTo(0.35, 1);
  });

  test("a cluster of two kinds of nodes is refused: rows do not say on which they ran", () => {
    const a100 = findClusterPreset("a100-80");
    const mixed = { ...a100, nodes: [...a100.nodes, ...findClusterPreset("h100").nodes] };
    const options = { cluster: mixed, software: software, recompute: "none" } as const;
    expect(() => calibrateCluster([], options)).toThrow(/do not say which of its kinds of nodes they ran on/);
  });

  test("a row says how its layers and their recomputation are spread", () => {
    const header =
      "# GPUs,global batch,micro batch,hidden size,attention heads,# layers,sequence length,tensor parallelism,data parallelism,pipeline parallelism,iteration time (ms),stage layers,recomputed layers";
    const [row] = parseMeasurements(`${header}\n2,8,2,256,4,8,256,1,1,2,100,5+3,1+2`, "made");
    if (row === undefined) throw new Error("no row");
    const { stages } = prepareRow(row, software, "full");
    expect(stages.map(({ firstLayer, numLayers, fullRecompute }) => [firstLayer, numLayers, fullRecompute])).toEqual([
      [0, 5, 1],
      [5, 3, 2],
    ]);
    expect(prepareRow({ ...row, recomputedLayers: null }, software, "full").stages.map(({ fullRecompute }) => fullRecompute)).toEqual([
      5, 3,
    ]);
  });

  test("the vocabulary is padded to 128 rows a tensor-parallel rank", () => {
    expect([1, 2, 4, 8].map((tp) => paddedVocabulary(50_257, tp))).toEqual([50_304, 50_432, 50_688, 51_200]);
  });
});
