/** Whole tensors from parts on many ranks: every element, whoever holds it; what is missing is named before anything is written. */
import { expect, test } from "vitest";
import { startRanks } from "../../src/parallel/index.ts";
import { boxSize, wholeBox, type Box } from "../../src/util/box.ts";
import { equalSpeeds, partition } from "../../src/util/partition.ts";
import type { CollectJob, PartDescription } from "./collect-rank.ts";

interface Outcome {
  readonly result: readonly (readonly [string, Float32Array])[] | null;
  readonly leaked: number;
}
async function run(parts: CollectJob["parts"], failWriting = false): Promise<Outcome[]> {
  const entry = new URL("./collect-rank.ts", import.meta.url);
  const data: CollectJob = { parts, failWriting };
  return (await startRanks({ size: parts.length, entry, data, backend: { engine: "reference", numThreads: 1 }, timeoutMs: 60_000 })
    .results) as Outcome[];
}
const patience = 120_000;

const part = (name: string, shape: readonly number[], box: Box = wholeBox(shape), dtype: "f32" | "bf16" = "f32"): PartDescription => ({
  name,
  dtype,
  shape,
  box,
  elements: { start: 0, end: boxSize(box) },
});
/** A dimension of a shape cut over ranks. */
function cut(name: string, shape: readonly number[], dim: number, ranks: number, dtype: "f32" | "bf16" = "f32"): PartDescription[] {
  return partition(shape[dim] ?? 0, equalSpeeds(ranks)).map((interval) => part(name, shape, wholeBox(shape).with(dim, interval), dtype));
}
/** A part's elements spread over ranks, as ZeRO does. */
function spread(of: PartDescription, ranks: number): PartDescription[] {
  return partition(boxSize(of.box), equalSpeeds(ranks)).map((elements) => ({ ...of, elements }));
}

test(
  "rows, columns, whole experts, flat intervals, replicas and overlaps come together, in both types",
  async () => {
    const norm = part("norm", [7]);
    const columns = cut("columns", [9, 5], 1, 2);
    // 3 ranks of which the first two share key-value head 1.
    const heads = [
      { start: 0, end: 4 },
      { start: 2, end: 6 },
      { start: 6, end: 10 },
    ].map((interval) => part("heads", [10, 3], wholeBox([10, 3]).with(0, interval)));
    const experts = cut("experts", [5, 4, 3], 0, 3, "bf16");
    const zero = columns.map((box) => spread({ ...box, name: "columns.exp_avg" }, 2));
    // More than a message holds.
    const large = spread(part("large", [1_700_000]), 2);
    const at = <T>(list: readonly T[], i: number): T[] => list.slice(i, i + 1);
    const parts = [
      [norm, ...at(columns, 0), ...at(heads, 0), ...at(experts, 0), ...at(zero[0] ?? [], 0), ...at(zero[1] ?? [], 1)],
      [norm, ...at(columns, 1), ...at(heads, 1), ...at(experts, 1), ...at(zero[0] ?? [], 1), ...at(large, 1)],
      [...at(columns, 1), ...at(heads, 2), ...at(experts, 2), ...at(zero[1] ?? [], 0), ...at(large, 0), part("only here", [])],
    ];
    const [first, ...others] = await run(parts);
    const sizes = { norm: 7, columns: 45, heads: 30, experts: 60, "columns.exp_avg": 45, large: 1_700_000, "only here": 1 };
    expect(first?.result?.map(([name]) => name).toSorted()).toEqual(Object.keys(sizes).toSorted());
    for (const [name, values] of first?.result ?? []) {
      expect(values.length, name).toBe(sizes[name as keyof typeof sizes]);
      expect(
        values.every((value, i) => value === i),
        name,
      ).toBe(true);
    }
    for (const { result } of others) expect(result).toBeNull();
    for (const { leaked } of [first ?? { leaked: NaN }, ...others]) expect(leaked).toBe(0);
  },
  patience,
);

test(
  "an element that nobody holds is an error that names its tensor",
  async () => {
    await expect(run([cut("matrix", [6, 4], 0, 3).slice(0, 1), cut("matrix", [6, 4], 0, 3).slice(2)])).rejects.toThrow(
      /ranks have parts of matrix, but not all of it/,
    );
    const zero = spread(part("moments", [10]), 3);
    await expect(run([zero.slice(0, 1), zero.slice(2)])).rejects.toThrow(/nobody has element 4 of a part of moments/);
    await expect(run([[part("shape", [4])], [part("shape", [2, 2])]])).rejects.toThrow(/ranks disagree on shape: \[4\] f32 and \[2, 2\]/);
  },
  patience,
);

test(
  "rank 0 that cannot write ends with its own error, and nobody waits for it",
  async () => {
    const parts = cut("matrix", [6, 4], 0, 2);
    await expect(run([parts.slice(0, 1), parts.slice(1)], true)).rejects.toThrow(/the disk is full/);
  },
  patience,
);
