/**
 * A hash map from a pair of non-negative 32-bit integers to one, in typed arrays: three words a slot, open addressing,
 * linear probing. Merge tables and tries live in it; a `Map` with computed keys takes five times the memory and boxes
 * keys over 2^31. It only grows, never deletes.
 */
export class PairMap {
  #slots: Int32Array;
  #mask: number;
  #size = 0;

  constructor(expected = 64) {
    let capacity = 64;
    while (capacity < expected * 2) capacity *= 2;
    this.#slots = new Int32Array(capacity * 3).fill(-1);
    this.#mask = capacity - 1;
  }

  get size(): number {
    return this.#size;
  }

  /** The value of (a, b), -1 when there is none. */
  get(a: number, b: number): number {
    const slots = this.#slots;
    let slot = hashPair(a, b) & this.#mask;
    for (;;) {
      const at = slot * 3;
      const first = slots[at] as number;
      if (first === -1) return -1;
      if (first === a && slots[at + 1] === b) return slots[at + 2] as number;
      slot = (slot + 1) & this.#mask;
    }
  }

  set(a: number, b: number, value: number): void {
    if ((this.#size + 1) * 2 > this.#mask + 1) this.#grow();
    let slot = hashPair(a, b) & this.#mask;
    const slots = this.#slots;
    while (slots[slot * 3] !== -1) {
      if (slots[slot * 3] === a && slots[slot * 3 + 1] === b) {
        slots[slot * 3 + 2] = value;
        return;
      }
      slot = (slot + 1) & this.#mask;
    }
    slots[slot * 3] = a;
    slots[slot * 3 + 1] = b;
    slots[slot * 3 + 2] = value;
    this.#size++;
  }

  #grow(): void {
    const old = this.#slots;
    const capacity = (this.#mask + 1) * 2;
    this.#slots = new Int32Array(capacity * 3).fill(-1);
    this.#mask = capacity - 1;
    this.#size = 0;
    for (let at = 0; at < old.length; at += 3) {
      if (old[at] !== -1) this.set(old[at] as number, old[at + 1] as number, old[at + 2] as number);
    }
  }
}

function hashPair(a: number, b: number): number {
  let h = Math.imul(a, 0x9e3779b1) ^ Math.imul(b + 0x7f4a7c15, 0x85ebca6b);
  h ^= h >>> 15;
  h = Math.imul(h, 0x2c1b3c6d);
  return h ^ (h >>> 13);
}
