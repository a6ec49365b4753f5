/**
 * How much of the exchange of tokens hides behind computation, over a link that is slow enough to be seen: an emulated one, over which a message takes time and
 * no core. Its bandwidth is chosen so that, without overlap, the exchange is 30% of the step.
 *
 * hidden = 1 - (what the link adds to a step whose halves take turns) / (what it adds to a step that waits).
 */
import type { LinkEmulation } from "../../../src/parallel/index.ts";
import { runLab } from "./lab.ts";
import type { LabResult, LabRun } from "./job.ts";

export const exposedShare = 0.3;
const latencyUs = 50;

export interface OverlapResult {
  readonly link: LinkEmulation;
  /** Seconds of a step. */
  readonly waiting: { readonly withoutLink: number; readonly withLink: number };
  readonly turns: { readonly withoutLink: number; readonly withLink: number };
  /** Of the step that waits: what the link adds. */
  readonly exposed: number;
  readonly hidden: number;
  /** Seconds inside the exchange's calls, of a step over the link. */
  readonly inCalls: { readonly waiting: number; readonly turns: number };
}

/** Two ranks, EDP under sequence parallelism. `traceFiles`: of the step that waits, and of the one whose halves take turns. */
export async function measureOverlap(folder: string, numSteps: number, traceFiles?: readonly [string, string]): Promise<OverlapResult> {
  const run = (overlap: boolean, link: LinkEmulation | null, traceFile?: string): LabRun => ({
    name: `EDP, sequence parallelism, ${overlap ? "halves take turns" : "waiting"}${link === null ? "" : ", over the link"}`,
    size: "small",
    layout: { tp: 2, sequenceParallel: true, overlap },
    numSteps,
    link,
    ...(traceFile === undefined ? {} : { traceFile }),
  });
  const [plain, plainTurns] = await pair(folder, [run(false, null), run(true, null)]);
  // What one rank sends, half of what all are given: a link is of each rank.
  const bytes = (plain.bytes["block"] ?? 0) / 2;
  const seconds = (plain.stepSeconds * exposedShare) / (1 - exposedShare);
  const numMessages = 16 * 4;
  const link = { latencyUs, gigabytesPerSecond: bytes / Math.max(1e-6, seconds - numMessages * latencyUs * 1e-6) / 1e9 / 2 };
  const [slow, slowTurns] = await pair(folder, [run(false, link, traceFiles?.[0]), run(true, link, traceFiles?.[1])]);
  const added = slow.stepSeconds - plain.stepSeconds;
  return {
    link,
    waiting: { withoutLink: plain.stepSeconds, withLink: slow.stepSeconds },
    turns: { withoutLink: plainTurns.stepSeconds, withLink: slowTurns.stepSeconds },
    exposed: added / slow.stepSeconds,
    hidden: 1 - (slowTurns.stepSeconds - plainTurns.stepSeconds) / added,
    inCalls: { waiting: slow.seconds["block"] ?? 0, turns: slowTurns.seconds["block"] ?? 0 },
  };
}

async function pair(folder: string, runs: readonly LabRun[]): Promise<[LabResult, LabResult]> {
  const [first, second] = await runLab(folder, runs, 2);
  if (first === undefined || second === undefined) throw new Error("the lab's ranks ended without results");
  return [first, second];
}
