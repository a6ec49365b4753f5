import fc from "fast-check";
import { expect, test } from "vitest";
import { axes, coordinatesOf, groupsOf, type MeshSizes } from "./mesh.ts";

/** Any sizes whose experts have whole replicas. */
const sizes = fc
  .record({
    pp: fc.integer({ min: 1, max: 3 }),
    ep: fc.integer({ min: 1, max: 4 }),
    etp: fc.integer({ min: 1, max: 3 }),
    edp: fc.integer({ min: 1, max: 3 }),
  })
  .chain(({ pp, ep, etp, edp }) => {
    const n = ep * etp * edp;
    const divisors = Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);
    return fc.constantFrom(...divisors).map((tp): MeshSizes => ({ pp, dp: n / tp, tp, ep, etp }));
  });

test("every axis is a partition of the ranks into groups of one size", () => {
  fc.assert(
    fc.property(sizes, (mesh) => {
      const { pp, dp, tp, ep, etp } = mesh;
      const n = dp * tp;
      const size = { tp, dp, stage: n, block: ep * etp, edp: n / (ep * etp), pp };
      for (const axis of axes) {
        const groups = groupsOf(axis, mesh);
        expect(groups.flat().toSorted((a, b) => a - b)).toEqual(Array.from({ length: pp * n }, (_, r) => r));
        expect(new Set(groups.map((group) => group.length))).toEqual(new Set([size[axis]]));
      }
    }),
  );
});
test("ranks of a block hold different experts, ranks of edp the same", () => {
  fc.assert(
    fc.property(sizes, (mesh) => {
      const held = (rank: number): string => `${coordinatesOf(rank, mesh).ep}/${coordinatesOf(rank, mesh).etp}`;
      for (const block of groupsOf("block", mesh)) expect(new Set(block.map(held)).size).toBe(mesh.ep * mesh.etp);
      for (const replicas of groupsOf("edp", mesh)) expect(new Set(replicas.map(held)).size).toBe(1);
    }),
  );
});
test("under EDP the ranks that share attention's heads are a replica of the experts, and both have one data-parallel group", () => {
  const mesh = { pp: 2, dp: 3, tp: 4, ep: 4, etp: 1 };
  expect(groupsOf("block", mesh)).toEqual(groupsOf("tp", mesh));
  expect(groupsOf("edp", mesh)).toEqual(groupsOf("dp", mesh));
});
test("rank 7 of 2 x 2 x 2 is the last of each axis", () => {
  const mesh = { pp: 2, dp: 2, tp: 2, ep: 2, etp: 2 };
  expect(coordinatesOf(7, mesh)).toEqual({ pp: 1, dp: 1, tp: 1, edp: 0, ep: 1, etp: 1 });
  expect(groupsOf("pp", mesh)).toEqual([
    [0, 4],
    [1, 5],
    [2, 6],
    [3, 7],
  ]);
});
