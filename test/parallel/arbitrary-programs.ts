/** Random programs for the communicators' conformance suite, and some that are chosen. */
import fc from "fast-check";
import type { Operation, Program, Startable } from "./programs.ts";

/** Sizes that matter: nothing, one, odd ones, and more than a page. */
const length = fc.oneof(fc.constantFrom(0, 1, 2, 3), fc.integer({ min: 0, max: 97 }), fc.integer({ min: 0, max: 9001 }));
const dtype = fc.constantFrom("f32", "bf16");

function startable(size: number): fc.Arbitrary<Startable> {
  const lengths = fc.array(length, { minLength: size, maxLength: size });
  const kinds: fc.Arbitrary<Startable>[] = [
    fc.record({ type: fc.constant("sum"), dtype, count: length }),
    fc.record({ type: fc.constant("scatter"), dtype, counts: lengths, inPlace: fc.boolean() }),
    fc.record({ type: fc.constant("gather"), lengths, inPlace: fc.boolean() }),
    fc.record({ type: fc.constant("exchange"), lengths: fc.array(lengths, { minLength: size, maxLength: size }) }),
  ];
  if (size > 1) {
    const message = fc
      .record({ from: fc.nat(size - 1), step: fc.integer({ min: 1, max: size - 1 }), length, tag: fc.nat(2) })
      .map(({ from, step, length, tag }): Startable => ({ type: "message", from, to: (from + step) % size, length, tag }));
    kinds.push(message);
  }
  return fc.oneof(...kinds);
}

function operation(size: number, depth: number): fc.Arbitrary<Operation> {
  const root = fc.nat(size - 1);
  const kinds: fc.Arbitrary<Operation>[] = [
    startable(size),
    startable(size),
    fc.record({ type: fc.constant("broadcast"), length, root }),
    fc.record({ type: fc.constant("share"), length, root }),
    fc.record({ type: fc.constant("barriers"), count: fc.integer({ min: 1, max: 3 }) }),
    fc.record({ type: fc.constant("overlapped"), operations: fc.array(startable(size), { minLength: 1, maxLength: 6 }) }),
  ];
  if (depth > 0 && size > 1) kinds.push(split(size, depth - 1));
  return fc.oneof(...kinds);
}

/** Groups of any sizes in any order; some ranks may be in none. */
function split(size: number, depth: number): fc.Arbitrary<Operation> {
  const order = fc.shuffledSubarray([...Array(size).keys()], { minLength: size - 1, maxLength: size });
  return fc.tuple(order, fc.integer({ min: 1, max: size })).chain(([ranks, most]) => {
    const groups: number[][] = [];
    for (let at = 0; at < ranks.length; at += most) groups.push(ranks.slice(at, at + most));
    return fc
      .tuple(...groups.map((group) => fc.array(operation(group.length, depth), { minLength: 1, maxLength: 4 })))
      .map((programs): Operation => ({ type: "split", groups, programs }));
  });
}

/** Programs of a few operations for so many ranks; the seed makes them. */
export function randomPrograms(size: number, count: number, seed: number): Program[] {
  return fc.sample(fc.array(operation(size, 2), { minLength: 1, maxLength: 6 }), { numRuns: count, seed });
}

/** What random programs may miss: large operands, many at once, many barriers. */
export function chosenPrograms(size: number): Program[] {
  const lengths = (most: number): number[] => Array.from({ length: size }, (_, r) => (r % 3 === 1 ? 0 : (r * 977 + most) % (most + 1)));
  const many = Array.from({ length: 40 }, (_, i): Startable => ({ type: "sum", dtype: i % 2 === 0 ? "f32" : "bf16", count: i * 13 }));
  return [
    [
      { type: "sum", dtype: "f32", count: 150_001 },
      { type: "sum", dtype: "bf16", count: 70_003 },
      { type: "gather", lengths: lengths(300_000), inPlace: false },
      { type: "scatter", dtype: "f32", counts: lengths(50_000), inPlace: false },
      { type: "exchange", lengths: Array.from({ length: size }, (_, r) => lengths(20_000 + 11 * r)) },
      { type: "share", length: 300_001, root: 0 },
    ],
    // More under way than any window.
    [{ type: "overlapped", operations: many }],
    [{ type: "barriers", count: 300 }],
  ];
}
