/** The sending side of an emulated link. */
import { expect, test } from "vitest";
import { Link, nowNs } from "./link.ts";

test("without emulation there is nothing to wait for", () => {
  expect(new Link().pass(1e9)).toEqual({ leaveNs: 0, arriveNs: 0 });
});

test("bytes leave one after the other at the link's rate, and arrive a latency later", () => {
  const link = new Link();
  link.set({ latencyUs: 100, gigabytesPerSecond: 2 });
  const before = nowNs();
  const first = link.pass(1_000_000);
  const second = link.pass(500_000);
  expect(first.leaveNs).toBeGreaterThanOrEqual(before + 500_000);
  expect(first.arriveNs - first.leaveNs).toBeCloseTo(100_000, 0);
  // Right behind the first, whenever it was sent meanwhile.
  expect(second.leaveNs - first.leaveNs).toBeCloseTo(250_000, 0);
  // Nothing takes no time, but is known to have passed a link.
  expect(link.pass(0)).toEqual({ leaveNs: 1, arriveNs: 1 });
  link.set(null);
  expect(link.pass(5)).toEqual({ leaveNs: 0, arriveNs: 0 });
});

test.each([
  [-1, 1],
  [0, 0],
  [Number.NaN, 1],
  [1, Number.NaN],
])("a latency of %d us at %d GB/s is refused", (latencyUs, gigabytesPerSecond) => {
  expect(() => new Link().set({ latencyUs, gigabytesPerSecond })).toThrow(/link: expected a latency/);
});
