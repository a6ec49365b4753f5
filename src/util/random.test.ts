import { expect, test } from "vitest";
import { MoeError } from "./errors.ts";
import { Random } from "./random.ts";

test("the first words from a known state are those of xoshiro128**", () => {
  // By hand from the definition, state (1, 2, 3, 4): rotl(2*5, 7)*9 = 11520; then b = 0 gives 0.
  const random = new Random([1, 2, 3, 4]);
  expect([random.uint32(), random.uint32()]).toEqual([11520, 0]);
});

test("a saved state continues the stream", () => {
  const random = new Random(42);
  for (let i = 0; i < 10; i++) random.uniform();
  const copy = new Random(random.state);
  expect(Array.from({ length: 5 }, () => copy.uniform())).toEqual(Array.from({ length: 5 }, () => random.uniform()));
});

test("keys name independent streams", () => {
  expect(Random.keyed(1, 2).uint32()).toBe(Random.keyed(1, 2).uint32());
  const words = new Set([Random.keyed(1, 2), Random.keyed(2, 1), Random.keyed(1), Random.keyed(1, 2, 0)].map((r) => r.uint32()));
  expect(words.size).toBe(4);
  expect(new Random(2 ** 40).uint32()).not.toBe(new Random(0).uint32());
});

test("uniform deviates have mean 1/2 and variance 1/12, normal ones 0, 1 and kurtosis 3", () => {
  const random = new Random(7);
  const n = 200_000;
  let [sum, squares, m1, m2, m4] = [0, 0, 0, 0, 0];
  const normals = random.fillNormal(new Float32Array(n), 1);
  for (let i = 0; i < n; i++) {
    const u = random.uniform();
    const z = i % 2 === 0 ? (normals[i] ?? 0) : random.normal();
    expect(u >= 0 && u < 1).toBe(true);
    sum += u;
    squares += u * u;
    m1 += z;
    m2 += z * z;
    m4 += z ** 4;
  }
  // Six standard errors of each mean.
  expect(Math.abs(sum / n - 0.5)).toBeLessThan(6 * Math.sqrt(1 / 12 / n));
  expect(Math.abs(squares / n - 1 / 3)).toBeLessThan(6 * Math.sqrt(4 / 45 / n));
  expect(Math.abs(m1 / n)).toBeLessThan(6 / Math.sqrt(n));
  expect(Math.abs(m2 / n - 1)).toBeLessThan(6 * Math.sqrt(2 / n));
  expect(Math.abs(m4 / n - 3)).toBeLessThan(6 * Math.sqrt(96 / n));
});

test("integers below n are uniform and a shuffle is a permutation", () => {
  const random = new Random(3);
  const counts = new Array<number>(6).fill(0);
  for (let i = 0; i < 60_000; i++) {
    const value = random.integer(6);
    counts[value] = (counts[value] ?? 0) + 1;
  }
  for (const count of counts) expect(Math.abs(count - 10_000)).toBeLessThan(600);
  const items = Int32Array.from({ length: 100 }, (_, i) => i);
  random.shuffle(items);
  expect([...items]).not.toEqual([...items].toSorted((a, b) => a - b));
  expect([...items].toSorted((a, b) => a - b)).toEqual(Array.from({ length: 100 }, (_, i) => i));
});

test("a seed that is no integer is refused", () => {
  expect(() => new Random(-1)).toThrow(MoeError);
  expect(() => new Random(0.5)).toThrow(/expected an integer/);
});
