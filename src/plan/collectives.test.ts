import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findClusterPreset } from "../config/cluster.ts";
import { collectiveSeconds, collectiveSentBytes, linksOf, messageSeconds, placeGroup } from "./collectives.ts";

const cluster = findClusterPreset("a100-80");
const group =
  cluster.nodes[0] ??
  ((): never => {
    throw new Error("no nodes");
  })();
const links = linksOf(group, cluster.inter, cluster.efficiency);
const kinds = ["allReduce", "reduceScatter", "allGather", "allToAll"] as const;

describe("collectives", () => {
  test("groups lie where Megatron's order of ranks puts them", () => {
    // Tensor-parallel ranks are neighbours; data-parallel ones are tp apart.
    expect(placeGroup(8, 1, 8)).toEqual({ size: 8, perNode: 8 });
    expect(placeGroup(16, 1, 8)).toEqual({ size: 16, perNode: 8 });
    expect(placeGroup(32, 4, 8)).toEqual({ size: 32, perNode: 2 });
    expect(placeGroup(32, 8, 8)).toEqual({ size: 32, perNode: 1 });
    expect(placeGroup(2, 64, 8)).toEqual({ size: 2, perNode: 1 });
  });

  test("an all-reduce of many bytes runs at (n - 1) / n of twice the bytes over the ring's bandwidth", () => {
    const bytes = 8e9;
    const inside = collectiveSeconds("allReduce", bytes, placeGroup(8, 1, 8), links);
    expect(inside / ((2 * 7 * bytes) / 8 / (300e9 * links.efficiency.intraLink))).toBeCloseTo(1, 2);
    // Over nodes a group has as many devices' shares of the network as it has members on a node.
    const [one, four] = [1, 4].map((perNode) => collectiveSeconds("allReduce", bytes, { size: 32, perNode }, links));
    expect((one ?? 0) / (four ?? 1)).toBeCloseTo(4, 1);
  });

  test("an all-reduce is a reduce-scatter and an all-gather, in time and in bytes", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 64 }),
        fc.integer({ min: 0, max: 1e9 }),
        fc.integer({ min: 1, max: 8 }),
        (size, bytes, stride) => {
          const place = placeGroup(size, stride, 8);
          const sum = (of: (kind: "reduceScatter" | "allGather") => number): number => of("reduceScatter") + of("allGather");
          expect(collectiveSeconds("allReduce", bytes, place, links)).toBeCloseTo(
            sum((kind) => collectiveSeconds(kind, bytes, place, links)),
            9,
          );
          expect(collectiveSentBytes("allReduce", bytes, size)).toBeCloseTo(
            sum((kind) => collectiveSentBytes(kind, bytes, size)),
            3,
          );
        },
      ),
    );
  });

  test("alone or without bytes there is nothing to do; more bytes never take less time", () => {
    fc.assert(
      fc.property(fc.constantFrom(...kinds), fc.integer({ min: 2, max: 64 }), fc.integer({ min: 1, max: 1e8 }), (kind, size, bytes) => {
        expect(collectiveSeconds(kind, bytes, placeGroup(1, 1, 8), links)).toBe(0);
        expect(collectiveSeconds(kind, 0, placeGroup(size, 1, 8), links)).toBe(0);
        expect(collectiveSentBytes(kind, bytes, 1)).toBe(0);
        const seconds = collectiveSeconds(kind, bytes, placeGroup(size, 1, 8), links);
        expect(seconds).toBeGreaterThan(0);
        expect(collectiveSeconds(kind, 2 * bytes, placeGroup(size, 1, 8), links)).toBeGreaterThan(seconds);
      }),
    );
  });

  test("of an all-to-all each rank keeps its own part", () => {
    // 4 ranks with 1000 bytes each: 250 to each other one.
    expect(collectiveSentBytes("allToAll", 4000, 4)).toBe(750);
    expect(collectiveSeconds("allToAll", 1e9, { size: 16, perNode: 8 }, links)).toBeGreaterThan(
      collectiveSeconds("allToAll", 1e9, { size: 8, perNode: 8 }, links),
    );
  });

  test("messages of a pipeline go through the network as soon as it fills more than one node", () => {
    const seconds = (numRanks: number): number => messageSeconds(1e8, numRanks, 8, links);
    expect(seconds(8)).toBeCloseTo(1e8 / (300e9 * links.efficiency.intraLink), 3);
    expect(seconds(9)).toBeGreaterThan(seconds(8));
    expect(seconds(64)).toBe(seconds(9));
  });
});
