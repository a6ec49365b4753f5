/**
 * One step of a run as a Chrome trace of all ranks: forward and backward passes by stage and micro-batch, messages, collectives, the optimizer.
 * Recording costs a few microseconds a span, so one step is enough, and the others run as if there were none.
 */
import type { Recorder } from "../parallel/recorder.ts";
import { chromeTrace } from "../util/chrome-trace.ts";
import { writeFileAtomically } from "../util/files.ts";
import type { RunGroup } from "./run-group.ts";

export class StepTrace {
  readonly #file: string | null;
  readonly #group: RunGroup;
  readonly #recorder: Recorder;
  readonly #step: number;

  /** `file` null: nothing is traced. `step`: which one, counted from 1. */
  constructor(file: string | null, { group, recorder, step }: { group: RunGroup; recorder: Recorder; step: number }) {
    this.#file = file;
    this.#group = group;
    this.#recorder = recorder;
    this.#step = step;
  }

  /** Runs step number `step`; writes the trace if it is the one. All ranks do. Throws `file`, `resource` where it cannot be written. */
  around<T>(step: number, run: () => T): T {
    if (this.#file === null || step !== this.#step) return run();
    // Ranks begin together, so that the trace shows the step and not who came late.
    this.#group.gather(null);
    this.#recorder.isOn = true;
    const result = this.#whileOn(run);
    const spans = this.#group.gather(this.#recorder.take()).flat();
    const first = spans.reduce((least, { startUs }) => Math.min(least, startUs), Infinity);
    const shifted = spans.map((span) => ({ ...span, startUs: span.startUs - first }));
    if (this.#group.isFirst) writeFileAtomically(this.#file, `${chromeTrace(shifted, { step: String(step) })}\n`);
    return result;
  }
  /** A step that fails is not gathered: other ranks may not have come so far. */
  #whileOn<T>(run: () => T): T {
    try {
      return run();
    } finally {
      this.#recorder.isOn = false;
    }
  }
}
