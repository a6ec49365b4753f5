/**
 * A link between ranks that is slower than this machine's memory: when what is sent now has left, and when it has arrived.
 *
 * The model is that of LogP with one port a rank: messages of a rank leave one after the other at the link's rate, and each arrives a
 * latency after its last byte left (D. Culler et al., LogP: Towards a Realistic Model of Parallel Computation, 1993). What arrives at one rank from
 * several does not queue: the collectives here send and receive alike, so the sending side alone already takes that time.
 *
 * Times are nanoseconds of the monotonic clock, which threads and processes of one machine share; so an emulated link works on one
 * machine only.
 */
import { MoeError } from "../util/errors.ts";
import type { LinkEmulation } from "./communicator.ts";

/** When something has left its rank and when it is there. 0: no link is emulated; 1: one is, but there was nothing to send. */
export interface Passage {
  readonly leaveNs: number;
  readonly arriveNs: number;
}
const noLink: Passage = { leaveNs: 0, arriveNs: 0 };
const nothingSent: Passage = { leaveNs: 1, arriveNs: 1 };

/** Of the monotonic clock. */
export function nowNs(): number {
  return Number(process.hrtime.bigint());
}

/** The sending side of a rank. */
export class Link {
  #emulation: LinkEmulation | null = null;
  #freeNs = 0;

  /** Throws `configuration` for what is no link. */
  set(emulation: LinkEmulation | null): void {
    if (emulation !== null && !(emulation.latencyUs >= 0 && emulation.gigabytesPerSecond > 0 && Number.isFinite(emulation.latencyUs)))
      throw new MoeError(
        "configuration",
        `link: expected a latency of at least 0 us and a bandwidth above 0 GB/s, got ${emulation.latencyUs} us and ${emulation.gigabytesPerSecond} GB/s`,
      );
    this.#emulation = emulation;
    this.#freeNs = 0;
  }

  /** Sends `bytes` now. Nothing to send takes no time. */
  pass(bytes: number): Passage {
    if (this.#emulation === null) return noLink;
    if (bytes === 0) return nothingSent;
    const leaveNs = Math.max(this.#freeNs, nowNs()) + bytes / this.#emulation.gigabytesPerSecond;
    this.#freeNs = leaveNs;
    return { leaveNs, arriveNs: leaveNs + this.#emulation.latencyUs * 1000 };
  }
}
