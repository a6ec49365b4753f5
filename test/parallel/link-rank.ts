/** Entry of a rank that measures an emulated link: communication alone, beside a computation, and what is counted. */
import { isMainThread } from "node:worker_threads";
import type { RankContext } from "../../src/parallel/index.ts";
import { runRank } from "../../src/parallel/index.ts";

export interface LinkJob {
  /** Bytes to each other rank, and what they should take. */
  readonly bytes: number;
  readonly linkMs: number;
  readonly latencyMs: number;
  /** What the computation beside it takes: a sleep, so that the machine's load does not matter. */
  readonly computeMs: number;
}
export interface LinkOutcome {
  readonly aloneMs: number;
  /** Of this thread, while it waited. */
  readonly cpuMs: number;
  readonly besideMs: number;
  readonly exposedSeconds: number;
  readonly flightSeconds: number;
  /** Two messages one after the other: when each was there. */
  readonly arrivalsMs: readonly number[];
  readonly withoutLinkMs: number;
}

export function measureLink({ engine: { backend }, communicator: world }: RankContext, job: LinkJob): LinkOutcome {
  const group = world.split([[...Array(world.size).keys()]], "axis");
  if (group === null) throw new Error("every rank is in the group");
  const { bytes, linkMs, latencyMs, computeMs } = job;
  group.emulateLink({ latencyUs: latencyMs * 1000, gigabytesPerSecond: ((world.size - 1) * bytes) / (linkMs * 1e6) });
  const [ptr, out] = [backend.alloc(world.size * bytes), backend.alloc(world.size * bytes)];
  const lengths = Array.from({ length: world.size }, () => bytes);
  const timed = (body: () => void): number => {
    world.barrier();
    const started = performance.now();
    body();
    return performance.now() - started;
  };
  let cpu = process.threadCpuUsage();
  const aloneMs = timed(() => {
    cpu = process.threadCpuUsage();
    group.allToAll(out, lengths, ptr, lengths);
    cpu = process.threadCpuUsage(cpu);
  });
  const before = { ...group.traffic.allToAll };
  const besideMs = timed(() => {
    const pending = group.startAllToAll(out, lengths, ptr, lengths);
    sleep(computeMs);
    pending.wait();
  });
  const after = group.traffic.allToAll;
  const arrivalsMs: number[] = [];
  timed(() => {
    const started = performance.now();
    const half = ((world.size - 1) * bytes) / 2;
    const next = (world.rank + 1) % world.size;
    const previous = (world.rank + world.size - 1) % world.size;
    const sends = [0, 1].map((tag) => group.startSend(ptr, half, next, tag));
    for (const tag of [0, 1]) {
      group.recv(out, half, previous, tag);
      arrivalsMs.push(performance.now() - started);
    }
    for (const pending of sends) pending.wait();
  });
  group.emulateLink(null);
  const withoutLinkMs = timed(() => group.allToAll(out, lengths, ptr, lengths));
  backend.free(ptr);
  backend.free(out);
  return {
    aloneMs,
    cpuMs: (cpu.user + cpu.system) / 1000,
    besideMs,
    exposedSeconds: after.seconds - before.seconds,
    flightSeconds: after.flightSeconds - before.flightSeconds,
    arrivalsMs,
    withoutLinkMs,
  };
}

function sleep(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

if (!isMainThread) await runRank((context) => measureLink(context, context.data as LinkJob));
