import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { BlockPool, emptyChain } from "./block-pool.ts";

function take(pool: BlockPool): number {
  const block = pool.allocate();
  if (block === null) throw new Error("no block");
  return block;
}

describe("a block pool", () => {
  test("gives every block once, and none when all are in use", () => {
    const pool = new BlockPool(3);
    expect(new Set([take(pool), take(pool), take(pool)]).size).toBe(3);
    expect([pool.allocate(), pool.numFree]).toEqual([null, 0]);
    expect(() => new BlockPool(0)).toThrow(/expected a positive number of blocks, got 0/);
    expect(() => pool.references(3)).toThrow(/block 3 of 3/);
  });
  test("counts users, and frees with the last of them", () => {
    const pool = new BlockPool(1);
    const block = take(pool);
    pool.retain(block);
    pool.release(block);
    expect([pool.numFree, pool.references(block)]).toEqual([0, 1]);
    pool.release(block);
    expect(pool.numFree).toBe(1);
    expect(() => pool.release(block)).toThrow(/released more often than retained/);
  });
  test("finds blocks by all that came before them, not by their own tokens alone", () => {
    const pool = new BlockPool(4);
    const first = pool.publish(take(pool), emptyChain, [1, 2]);
    const second = pool.publish(take(pool), first.chain, [3, 4]);
    expect(pool.find(emptyChain, [1, 2])).toEqual(first);
    expect(pool.find(first.chain, [3, 4])).toEqual(second);
    expect([pool.find(emptyChain, [3, 4]), pool.find(second.chain, [1, 2]), pool.find(emptyChain, [12])]).toEqual([null, null, null]);
  });
  test("keeps one block of the same content: a second publisher gets the first one's", () => {
    const pool = new BlockPool(2);
    const [a, b] = [take(pool), take(pool)];
    const first = pool.publish(a, emptyChain, [1]);
    expect(pool.publish(b, emptyChain, [1])).toEqual(first);
    expect([pool.references(a), pool.references(b), pool.numFree]).toEqual([2, 0, 1]);
  });
  test("gives up what was released longest ago, and of a sequence its end first", () => {
    const pool = new BlockPool(3);
    const [a, b, c] = [take(pool), take(pool), take(pool)];
    const first = pool.publish(a, emptyChain, [1]);
    pool.publish(b, first.chain, [2]);
    pool.publish(c, emptyChain, [3]);
    for (const block of [b, a, c]) pool.release(block);
    expect([pool.numFree, pool.numIdle]).toEqual([3, 3]);
    expect(take(pool)).toBe(b);
    expect([pool.find(emptyChain, [1])?.block, pool.find(first.chain, [2])]).toEqual([a, null]);
    // Used again, so no longer the oldest.
    pool.retain(a);
    pool.release(a);
    expect([take(pool), take(pool)]).toEqual([c, a]);
  });
  test("never mixes up users, whatever is done with it", () => {
    const action = fc.record({
      kind: fc.constantFrom("take", "share", "drop", "publish"),
      which: fc.nat(50),
      ids: fc.array(fc.nat(2), { minLength: 1, maxLength: 1 }),
    });
    fc.assert(
      fc.property(fc.array(action, { maxLength: 80 }), (actions) => {
        const pool = new BlockPool(6);
        // Blocks by user, and what a user believes to be in a block.
        const held: { block: number; content: string | null; chain: number }[] = [];
        const contents = new Map<number, string>();
        for (const { kind, which, ids } of actions) {
          const one = held[which % Math.max(1, held.length)];
          if (kind === "take") {
            const block = pool.allocate();
            if (block === null) continue;
            expect(held.some((other) => other.block === block)).toBe(false);
            contents.delete(block);
            held.push({ block, content: null, chain: emptyChain });
          } else if (one === undefined) continue;
          else if (kind === "share") {
            pool.retain(one.block);
            held.push({ ...one });
          } else if (kind === "drop") {
            pool.release(one.block);
            held.splice(held.indexOf(one), 1);
          } else if (one.content === null && pool.isPrivate(one.block)) {
            const { block } = pool.publish(one.block, emptyChain, ids);
            const content = String(ids);
            expect(contents.get(block) ?? content).toBe(content);
            contents.set(block, content);
            Object.assign(one, { block, content });
          }
          for (const { block } of held) expect(pool.references(block)).toBe(held.filter((other) => other.block === block).length);
          expect(pool.numFree).toBe(6 - new Set(held.map(({ block }) => block)).size);
          for (const id of [0, 1, 2]) {
            const found = pool.find(emptyChain, [id]);
            if (found !== null) expect(contents.get(found.block)).toBe(String(id));
          }
        }
        pool.clear();
        expect(pool.numIdle).toBe(0);
      }),
    );
  });
});
