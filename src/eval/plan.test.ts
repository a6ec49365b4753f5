import fc from "fast-check";
import { expect, test } from "vitest";
import { planGroups, type Sequence } from "./plan.ts";

function sequence(ids: readonly number[], item: string, ...positions: readonly number[]): Sequence<string> {
  return { ids: Int32Array.from(ids), wanted: positions.map((position) => ({ position, item })) };
}

test("neighbours that begin alike share their beginning, up to the first wanted position", () => {
  const groups = planGroups([sequence([1, 2, 3, 4, 5], "a", 4), sequence([9, 9], "c", 1), sequence([1, 2, 3, 7], "b", 2, 3)], {
    merge: true,
  });
  expect(groups.map(({ prefixLength, members }) => [prefixLength, members.length])).toEqual([
    [2, 2],
    [0, 1],
  ]);
});

test("a sequence that another begins with is asked along with it when merging, and stays itself otherwise", () => {
  const sequences = [sequence([1, 2, 3], "long", 2), sequence([1, 2], "short", 1), sequence([1, 2, 3], "same", 2)];
  const [group] = planGroups(sequences, { merge: true });
  expect(group?.members.map(({ wanted }) => wanted.map(({ item }) => item).toSorted())).toEqual([["long", "same", "short"]]);
  expect(planGroups(sequences, { merge: false }).flatMap(({ members }) => members)).toHaveLength(3);
});

test("a far relation does not spoil a close one", () => {
  const close = [sequence([1, 2, 3, 4, 5, 6], "a", 5), sequence([1, 2, 3, 4, 5, 7], "b", 5)];
  const groups = planGroups([...close, sequence([1, 8, 8, 8, 8, 8], "far", 5)], { merge: true });
  expect(groups.map(({ prefixLength, members }) => [prefixLength, members.length])).toEqual([
    [5, 2],
    [0, 1],
  ]);
});

test("every question is asked once, behind its own tokens, with nothing wanted in a shared beginning", () => {
  const ids = fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 8 });
  fc.assert(
    fc.property(fc.array(ids, { minLength: 1, maxLength: 12 }), fc.boolean(), (all, merge) => {
      const groups = planGroups(
        all.map((sequenceIds, i) => sequence(sequenceIds, String(i), sequenceIds.length - 1)),
        { merge },
      );
      const seen: string[] = [];
      for (const { prefixLength, members } of groups) {
        for (const member of members) {
          expect([...member.ids.subarray(0, prefixLength)]).toEqual([...(members[0]?.ids.subarray(0, prefixLength) ?? [])]);
          expect(member.ids.length).toBeGreaterThan(prefixLength);
          for (const { position, item } of member.wanted) {
            expect(position).toBeGreaterThanOrEqual(prefixLength);
            expect([...member.ids.subarray(0, position + 1)]).toEqual(all[Number(item)]);
            seen.push(item);
          }
        }
      }
      expect(seen.toSorted()).toEqual(all.map((_, i) => String(i)).toSorted());
    }),
  );
});
