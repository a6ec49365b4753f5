/**
 * Ranks of one process that compute natively: they meet in C (`native/ranks/shared.c`), where each reads the others' operands in place.
 *
 * Rank 0 makes what they share and tells the others its address through the control block. A rank that ends the group waits until no other is
 * in the midst of its memory, because it may free that next.
 */
import type { NativeBackend } from "../backend/native/backend.ts";
import { MoeError } from "../util/errors.ts";
import { noWorld, type ControlBlock } from "./control-block.ts";
import { bindCalls, nativeCallTypes, type NativeCalls, type NativeHost } from "./native-driver.ts";

interface SharedCalls extends NativeCalls {
  worldCreate(size: number): number;
  join(world: number, rank: number): number;
  end(self: number): void;
  leave(self: number): void;
}
const callTypes = {
  ...nativeCallTypes,
  worldCreate: ["uintptr_t", "int"],
  join: ["uintptr_t", "uintptr_t", "int"],
  end: ["void", "uintptr_t"],
  leave: ["void", "uintptr_t"],
} as const satisfies Record<keyof SharedCalls, readonly [string, ...string[]]>;

/** For the others' reason to arrive, after C said that the group ended. */
const reasonMs = 2000;

export class SharedWorld implements NativeHost {
  readonly calls: SharedCalls;
  readonly rank: number;
  readonly size: number;
  readonly timeoutMs: number;
  readonly #control: ControlBlock;
  #self: number;

  /** Waits for rank 0's world. Throws `communication` where the group ends first, or rank 0 does not compute natively. */
  constructor(backend: NativeBackend, control: ControlBlock, rank: number, timeoutMs: number) {
    this.calls = bindCalls<SharedCalls>(backend.library.bind, "moe_ranks", callTypes);
    this.rank = rank;
    this.size = control.size;
    this.timeoutMs = timeoutMs;
    this.#control = control;
    const world = rank === 0 ? this.calls.worldCreate(control.size) : control.awaitAddress(rank, timeoutMs);
    if (world > 0 && rank === 0) control.address = world;
    if (world === noWorld)
      throw new MoeError("communication", `rank 0 does not compute natively, rank ${rank} does: ranks of one group must compute alike`);
    this.#self = world > 0 ? this.calls.join(world, rank) : 0;
    if (this.#self === 0) throw new MoeError("resource", `rank ${rank}: no memory for a group of ${control.size}`);
  }
  get self(): number {
    if (this.#self === 0) throw new MoeError("internal", `rank ${this.rank}: its group was used after it left`);
    return this.#self;
  }

  check(): void {
    if (!this.#control.isAborted) return;
    this.#end();
    this.#control.check();
  }
  ended(): never {
    // Who ended it said why first; who left without a word did not.
    for (const until = performance.now() + reasonMs; !this.#control.isAborted && performance.now() < until;)
      this.#control.sleep(this.rank, this.#control.bell(this.rank), 10);
    this.#control.abort("a rank left the group");
    this.#end();
    this.#control.check();
    throw new MoeError("communication", "the group was ended");
  }
  gone(ranks: readonly number[]): readonly number[] {
    return this.#control.gone(ranks);
  }
  failure(): string {
    return "out of memory";
  }
  abort(message: string): void {
    this.#control.abort(message);
    this.#end();
  }
  #end(): void {
    if (this.#self !== 0) this.calls.end(this.#self);
  }
  /** Before this rank's memory goes. Where the group was ended, no other rank accesses it afterwards. */
  leave(): void {
    if (this.#self === 0) return;
    if (this.#control.isAborted) this.#end();
    this.#control.leave(this.rank);
    this.calls.leave(this.#self);
    this.#self = 0;
  }
}
