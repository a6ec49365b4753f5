/** What communicators count, and the table of it. */
import { expect, test } from "vitest";
import { createReferenceBackend } from "../backend/reference/index.ts";
import { createLocalGroup, openLocalWorld } from "./local.ts";
import { volumeOf } from "./operation.ts";
import { addTraffic, copyTraffic, emptyTraffic, trafficSince, trafficTable } from "./traffic.ts";

test("volumes are those of the closed forms", () => {
  // 2 (R - 1) / R of the operand for an all-reduce, where the ranks divide it.
  for (const rank of [0, 1, 2, 3])
    expect(volumeOf({ kind: "allReduce", ptr: 0, count: 1000, dtype: "f32" }, rank, 4)).toEqual({
      bytes: 4000,
      sent: 6000,
      received: 6000,
    });
  // Uneven: 7 elements over 3 ranks are slices of 3, 2 and 2.
  const uneven = [0, 1, 2].map((rank) => volumeOf({ kind: "allReduce", ptr: 0, count: 7, dtype: "bf16" }, rank, 3).sent);
  expect(uneven).toEqual([2 * (4 + 6), 2 * (5 + 4), 2 * (5 + 4)]);
  const scatter = { kind: "reduceScatter", out: 0, ptr: 0, counts: [10, 0, 5], dtype: "f32" } as const;
  expect([0, 1, 2].map((rank) => volumeOf(scatter, rank, 3))).toEqual([
    { bytes: 60, sent: 20, received: 80 },
    { bytes: 60, sent: 60, received: 0 },
    { bytes: 60, sent: 40, received: 40 },
  ]);
  expect(volumeOf({ kind: "allGather", out: 0, ptr: 0, lengths: [7, 9] }, 1, 2)).toEqual({ bytes: 9, sent: 9, received: 7 });
  const exchange = { kind: "allToAll", out: 0, recvLengths: [1, 5, 6], ptr: 0, sendLengths: [2, 5, 3] } as const;
  expect(volumeOf(exchange, 1, 3)).toEqual({ bytes: 10, sent: 5, received: 7 });
  expect(volumeOf({ kind: "broadcast", ptr: 0, length: 8, root: 1 }, 1, 3)).toEqual({ bytes: 8, sent: 16, received: 0 });
  expect(volumeOf({ kind: "broadcast", ptr: 0, length: 8, root: 1 }, 0, 3)).toEqual({ bytes: 0, sent: 0, received: 8 });
  expect(volumeOf({ kind: "barrier" }, 0, 3)).toEqual({ bytes: 0, sent: 0, received: 0 });
});

test("what all ranks send is what all ranks receive", () => {
  const counts = [3, 0, 11, 4];
  const sum = (of: "sent" | "received", request: Parameters<typeof volumeOf>[0]): number =>
    counts.reduce((total, _, rank) => total + volumeOf(request, rank, counts.length)[of], 0);
  for (const request of [
    { kind: "allReduce", ptr: 0, count: 13, dtype: "f32" },
    { kind: "reduceScatter", out: 0, ptr: 0, counts, dtype: "bf16" },
    { kind: "allGather", out: 0, ptr: 0, lengths: counts },
    { kind: "broadcast", ptr: 0, length: 9, root: 2 },
  ] as const)
    expect(sum("sent", request), request.kind).toBe(sum("received", request));
});

test("a communicator counts calls and bytes, and differences and sums of tables add up", () => {
  const backend = createReferenceBackend();
  const [memory] = createLocalGroup(1);
  if (memory === undefined) throw new Error("a group of one has a rank");
  using world = openLocalWorld(backend, memory, { spins: 0, timeoutMs: 1000 });
  const { communicator } = world;
  const ptr = backend.alloc(64);
  communicator.allReduce(ptr, 16, "f32");
  const before = copyTraffic(communicator.traffic);
  communicator.allReduce(ptr, 4, "bf16");
  communicator.barrier();
  const since = trafficSince(communicator.traffic, before);
  expect(since.allReduce).toMatchObject({ calls: 1, bytes: 8, sentBytes: 0 });
  expect(addTraffic([before, since]).allReduce).toMatchObject({ calls: 2, bytes: 72 });
  // A part of it counts for itself, and shows under its own name; parts of one name together.
  for (const count of [1, 2]) communicator.split([[0]], "dp")?.allReduce(ptr, count, "f32");
  expect(communicator.axes.map(({ name, traffic }) => [name, traffic.allReduce.calls, traffic.allReduce.bytes])).toEqual([
    ["world", 2, 72],
    ["dp", 2, 12],
  ]);
  backend.free(ptr);
  backend.dispose();
});

test("the table has a line for each axis and operation that occurred, with its columns aligned", () => {
  const traffic = emptyTraffic();
  Object.assign(traffic.allReduce, { calls: 12, bytes: 4096, sentBytes: 6144, seconds: 0.25, flightSeconds: 1.5 });
  Object.assign(traffic.recv, { calls: 1, bytes: 8, receivedBytes: 8, seconds: 0, flightSeconds: 0 });
  expect(
    trafficTable([
      { name: "dp", traffic },
      { name: "a longer axis", traffic: emptyTraffic() },
    ]),
  ).toEqual([
    "axis  operation  calls  bytes  sent  seconds  in flight",
    "dp    allReduce     12   4096  6144   0.2500     1.5000",
    "dp    recv           1      8     0   0.0000     0.0000",
  ]);
});
