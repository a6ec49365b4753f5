/** An emulated link takes its time and no processor, and a computation beside it hides it, over threads and over processes. */
import { expect, test } from "vitest";
import { startRanks } from "../../src/parallel/index.ts";
import type { LinkJob, LinkOutcome } from "./link-rank.ts";
import { mpirun, noMpi } from "./mpirun.ts";

const job: LinkJob = { bytes: 100_000, linkMs: 300, latencyMs: 50, computeMs: 250 };
const patience = 120_000;
/** How much later than it should a thread may wake on a machine that others use. */
const lateMs = 200;
/** How much earlier than this rank may the other have left the barrier: its bytes are then there so much earlier. */
const skewMs = 45;

function check({ aloneMs, cpuMs, besideMs, exposedSeconds, flightSeconds, arrivalsMs, withoutLinkMs }: LinkOutcome): void {
  const link = job.linkMs + job.latencyMs;
  expect(aloneMs).toBeGreaterThan(link - skewMs);
  expect(aloneMs).toBeLessThan(link + lateMs);
  expect(cpuMs).toBeLessThan(link / 4);
  // Together as long as the longer of both, not as their sum.
  expect(besideMs).toBeGreaterThan(link - skewMs);
  expect(besideMs).toBeLessThan(link + lateMs);
  expect(exposedSeconds * 1000).toBeLessThan(link - job.computeMs + lateMs);
  expect(flightSeconds * 1000).toBeGreaterThan(link - skewMs);
  // The second message leaves after the first.
  expect(arrivalsMs[0]).toBeGreaterThan(link - job.linkMs / 2 - skewMs);
  expect(arrivalsMs[1]).toBeGreaterThan(link - skewMs);
  expect(arrivalsMs[1]).toBeLessThan(link + lateMs);
  expect(withoutLinkMs).toBeLessThan(lateMs);
}

test.each(["native", "reference"] as const)(
  "between threads that compute with %s",
  async (engine) => {
    const entry = new URL("./link-rank.ts", import.meta.url);
    const { results } = startRanks({ size: 2, entry, data: job, backend: { engine, numThreads: 1 } });
    for (const outcome of (await results) as LinkOutcome[]) check(outcome);
  },
  patience,
);

test.skipIf(noMpi !== null)(
  `between processes${noMpi === null ? "" : ` (skipped: ${noMpi})`}`,
  async () => {
    const { code, stdout, stderr } = await mpirun(2, new URL("./link-mpi.ts", import.meta.url), [JSON.stringify(job)]);
    expect(code, stderr).toBe(0);
    const outcomes = stdout.trim().split("\n");
    expect(outcomes).toHaveLength(2);
    for (const line of outcomes) check(JSON.parse(line) as LinkOutcome);
  },
  patience,
);
