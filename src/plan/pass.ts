/**
 * Adds up one pass (forward, backward, recomputation) over a layer from its operations.
 *
 * The device works through its operations one after the other while the host launches the next ones. What takes longer decides:
 * `seconds` is the larger of the device's sum and the host's (`hostSeconds` for each launch). Small layers wait for the host. Where the device is
 * the host's own core, `seconds` is the sum of both.
 */
import type { ComputeType } from "../config/cluster.ts";
import { collectiveSeconds, collectiveSentBytes, type Collective, type GroupPlacement, type Links } from "./collectives.ts";
import { memorySeconds, productSeconds, type DeviceTiming, type ProductShape } from "./device-time.ts";
import type { Axis, PassCost } from "./types.ts";

/** Launches that a collective takes of the host: the operation, and events that order it with the computing stream. */
const launchesOfCollective = 3;

export class Pass {
  readonly #timing: DeviceTiming;
  readonly #links: Links;
  #device = 0;
  #communication = 0;
  #launches = 0;
  #flops = 0;
  readonly #sent = { tp: 0, ep: 0, pp: 0, dp: 0 };

  constructor(timing: DeviceTiming, links: Links) {
    this.#timing = timing;
    this.#links = links;
  }

  product(shape: ProductShape, type: ComputeType): this {
    this.#device += productSeconds(this.#timing, shape, type);
    this.#flops += 2 * (shape.batch ?? 1) * shape.rows * shape.columns * shape.depth;
    this.#launches++;
    return this;
  }
  /** An operation that reads and writes `bytes`, in `launches` kernels. */
  memory(bytes: number, launches = 1): this {
    this.#device += memorySeconds(this.#timing, bytes) + (launches - 1) * this.#timing.efficiency.kernelSeconds;
    this.#launches += launches;
    return this;
  }
  /** An operation whose device time is known; `flops` of it count. */
  kernel(seconds: number, flops: number): this {
    this.#device += this.#timing.efficiency.kernelSeconds + seconds;
    this.#flops += flops;
    this.#launches++;
    return this;
  }
  /** Launches without work worth counting (views, random states, checks). */
  host(launches: number): this {
    this.#launches += launches;
    return this;
  }
  /** A collective over `bytes` that nothing overlaps. */
  collective(kind: Collective, bytes: number, group: GroupPlacement, axis: Axis): this {
    if (group.size <= 1) return this;
    const seconds = collectiveSeconds(kind, bytes, group, this.#links);
    this.#device += seconds;
    this.#communication += seconds;
    this.#launches += launchesOfCollective;
    this.#sent[axis] += collectiveSentBytes(kind, bytes, group.size);
    return this;
  }
  cost(): PassCost {
    const { device, efficiency } = this.#timing;
    const host = this.#launches * efficiency.hostSeconds;
    return {
      seconds: device.isHost === true ? this.#device + host : Math.max(this.#device, host),
      communicationSeconds: this.#communication,
      flops: this.#flops,
      sentBytes: { ...this.#sent },
    };
  }
}

export const noPass: PassCost = { seconds: 0, communicationSeconds: 0, flops: 0, sentBytes: { tp: 0, ep: 0, pp: 0, dp: 0 } };
