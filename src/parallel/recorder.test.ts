import { expect, test } from "vitest";
import { createReferenceBackend } from "../backend/reference/index.ts";
import { createLocalGroup, openLocalWorld } from "./index.ts";
import { RecordedCommunicator, Recorder } from "./recorder.ts";

test("a recorder keeps spans only while it is on, with the result of what it ran, also where that throws", () => {
  const recorder = new Recorder(3, () => 1000);
  expect(recorder.span({ name: "before", track: "compute" }, () => 1)).toBe(1);
  recorder.isOn = true;
  expect(recorder.span({ name: "forward", track: "compute", args: { stage: 2 } }, () => "result")).toBe("result");
  expect(() =>
    recorder.span({ name: "fails", track: "communication" }, () => {
      throw new Error("lost");
    }),
  ).toThrow("lost");
  recorder.isOn = false;
  recorder.span({ name: "after", track: "compute" }, () => 0);
  const spans = recorder.take();
  expect(spans.map(({ name, rank, track, args, liveBytes }) => [name, rank, track, args, liveBytes])).toEqual([
    ["forward", 3, "compute", { stage: 2 }, 1000],
    ["fails", 3, "communication", undefined, undefined],
  ]);
  for (const { durationUs } of spans) expect(durationUs).toBeGreaterThanOrEqual(0);
  expect(recorder.take()).toEqual([]);
});

test("a recorded communicator does what the one within does, and names operation, axis and bytes", () => {
  const backend = createReferenceBackend();
  const [memory] = createLocalGroup(1);
  if (memory === undefined) throw new Error("a group of one has a rank");
  const recorder = new Recorder(0);
  using world = openLocalWorld(backend, memory, { spins: 0, timeoutMs: 1000 });
  const inner = world.communicator;
  const communicator = new RecordedCommunicator(inner, recorder);
  const ptr = backend.alloc(16);
  backend.write(ptr, Float32Array.of(1, 2, 3, 4));
  recorder.isOn = true;
  communicator.allReduce(ptr, 4, "f32");
  communicator
    .split([[0]], "dp")
    ?.startAllGather(ptr, ptr, [16])
    .wait();
  recorder.isOn = false;
  communicator.barrier();
  expect(recorder.take().map(({ name, args }) => [name, args?.["bytes"]])).toEqual([
    ["allReduce world", 16],
    ["start allGather dp", 16],
    ["allGather dp", 16],
  ]);
  const values = new Float32Array(4);
  backend.read(values, ptr);
  expect([...values]).toEqual([1, 2, 3, 4]);
  expect(communicator.traffic).toBe(inner.traffic);
  expect(communicator.traffic.allReduce.calls).toBe(1);
  expect([communicator.name, communicator.rank, communicator.size, communicator.members]).toEqual(["world", 0, 1, [0]]);
  backend.free(ptr);
  backend.dispose();
});
