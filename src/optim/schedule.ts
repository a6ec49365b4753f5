/**
 * Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume. A schedule is plain data with a
 * name out of a closed set; every one can start with a linear warm-up.
 *
 * Steps count updates from 0: `learningRateAt(schedule, 0)` is the rate of the first update. Warm-up gives
 * peak * (step + 1) / warmupSteps, so the first update is not lost on a rate of 0. A decay starts from the peak at step
 * `warmupSteps` (for `wsd` at `totalSteps - decaySteps`), would be at `minLearningRate` at step `totalSteps`, and stays there.
 */
import { MoeError } from "../util/errors.ts";
import { didYouMean } from "../util/nearest.ts";

interface Warmup {
  /** The peak. */
  readonly learningRate: number;
  readonly warmupSteps: number;
}
interface Decay extends Warmup {
  readonly minLearningRate: number;
  readonly totalSteps: number;
}

/**
 * - `constant`: the peak for ever (the low rate of upcycling with a small budget)
 * - `linear`: straight down
 * - `cosine`: half a cosine wave down (arXiv 1608.03983)
 * - `wsd`: warm-up, stable, decay (arXiv 2404.06395): the peak until the last `decaySteps`, then down by `decay`, of which
 *   `sqrt` is 1 - sqrt(progress) (arXiv 2405.18392)
 */
export type Schedule =
  | ({ readonly name: "constant" } & Warmup)
  | ({ readonly name: "linear" } & Decay)
  | ({ readonly name: "cosine" } & Decay)
  | ({ readonly name: "wsd"; readonly decaySteps: number; readonly decay: DecayShape } & Decay);

export const decayShapes = ["linear", "cosine", "sqrt"] as const;
export type DecayShape = (typeof decayShapes)[number];

const decayKeys = ["learningRate", "warmupSteps", "minLearningRate", "totalSteps"] as const;
/** The fields of each schedule, all required. */
export const scheduleFields = {
  constant: ["learningRate", "warmupSteps"],
  linear: decayKeys,
  cosine: decayKeys,
  wsd: [...decayKeys, "decaySteps", "decay"],
} as const satisfies Record<Schedule["name"], readonly string[]>;

/** Learning rate of update `step` (0 is the first). */
export function learningRateAt(schedule: Schedule, step: number): number {
  const { learningRate, warmupSteps } = schedule;
  if (step < warmupSteps) return (learningRate * (step + 1)) / warmupSteps;
  switch (schedule.name) {
    case "constant":
      return learningRate;
    case "linear":
    case "cosine":
      return decayed(schedule, schedule.name, warmupSteps, step);
    case "wsd":
      return decayed(schedule, schedule.decay, schedule.totalSteps - schedule.decaySteps, step);
    default:
      return schedule satisfies never;
  }
}

function decayed({ learningRate, minLearningRate, totalSteps }: Decay, shape: DecayShape, start: number, step: number): number {
  if (step >= totalSteps) return minLearningRate;
  if (step < start) return learningRate;
  const remaining = remainingAt(shape, (step - start) / (totalSteps - start));
  return minLearningRate + (learningRate - minLearningRate) * remaining;
}

/** What is left of the way from peak to minimum at `progress` in 0..1: 1 at 0, 0 at 1. */
function remainingAt(shape: DecayShape, progress: number): number {
  switch (shape) {
    case "linear":
      return 1 - progress;
    case "cosine":
      return 0.5 * (1 + Math.cos(Math.PI * progress));
    case "sqrt":
      return 1 - Math.sqrt(progress);
    default:
      return shape satisfies never;
  }
}

/**
 * The schedule that `value` describes. Throws `configuration` for an unknown name or field (with the nearest known one), a
 * missing field, a value out of range, or fields that contradict each other. `path` names the place in messages.
 */
export function parseSchedule(value: unknown, path = "schedule"): Schedule {
  const fail = (message: string): never => {
    throw new MoeError("configuration", `${path}${message}`);
  };
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return fail(`: expected an object, got ${JSON.stringify(value)}`);
  const fields = new Map<string, unknown>(Object.entries(value));
  const given = fields.get("name");
  const names = Object.keys(scheduleFields);
  const name = isScheduleName(given)
    ? given
    : fail(`.name: expected one of ${names.join(", ")}, got ${JSON.stringify(given)}${didYouMean(String(given), names)}`);
  const known: readonly string[] = ["name", ...scheduleFields[name]];
  for (const key of fields.keys()) if (!known.includes(key)) fail(`: unknown field ${key} of ${name}${didYouMean(key, known)}`);
  for (const key of known) if (!fields.has(key)) fail(`: ${name} needs ${key}`);

  const rate = (key: string, least: number): number => {
    const got = fields.get(key);
    return typeof got === "number" && Number.isFinite(got) && got >= least
      ? got
      : fail(`.${key}: expected a finite number of at least ${least}, got ${JSON.stringify(got)}`);
  };
  const count = (key: string, least: number): number => {
    const got = fields.get(key);
    return typeof got === "number" && Number.isSafeInteger(got) && got >= least
      ? got
      : fail(`.${key}: expected an integer of at least ${least}, got ${JSON.stringify(got)}`);
  };
  const warmup = { learningRate: rate("learningRate", 0), warmupSteps: count("warmupSteps", 0) };
  if (name === "constant") return { name, ...warmup };
  const decay = { ...warmup, minLearningRate: rate("minLearningRate", 0), totalSteps: count("totalSteps", 1) };
  const { learningRate, minLearningRate, warmupSteps, totalSteps } = decay;
  if (minLearningRate > learningRate) fail(`: minLearningRate ${minLearningRate} is above learningRate ${learningRate}`);
  if (warmupSteps > totalSteps) fail(`: warmupSteps ${warmupSteps} is more than totalSteps ${totalSteps}`);
  if (name !== "wsd") return { name, ...decay };
  const decaySteps = count("decaySteps", 0);
  if (warmupSteps + decaySteps > totalSteps)
    fail(`: warmupSteps ${warmupSteps} + decaySteps ${decaySteps} is more than totalSteps ${totalSteps}`);
  const shape = decayShapes.find((candidate) => candidate === fields.get("decay"));
  if (shape === undefined)
    return fail(
      `.decay: expected one of ${decayShapes.join(", ")}, got ${JSON.stringify(fields.get("decay"))}${didYouMean(String(fields.get("decay")), decayShapes)}`,
    );
  return { name, ...decay, decaySteps, decay: shape };
}

function isScheduleName(value: unknown): value is Schedule["name"] {
  return typeof value === "string" && Object.hasOwn(scheduleFields, value);
}
