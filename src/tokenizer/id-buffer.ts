/** A growing array of ids: what every encoder writes to. It is not a general vector. */
export class IdBuffer {
  #ids: Int32Array;
  #length = 0;

  constructor(capacity = 256) {
    this.#ids = new Int32Array(capacity);
  }

  get length(): number {
    return this.#length;
  }

  push(id: number): void {
    if (this.#length === this.#ids.length) this.#grow(this.#length + 1);
    this.#ids[this.#length++] = id;
  }

  pushAll(ids: Int32Array, count = ids.length): void {
    if (this.#length + count > this.#ids.length) this.#grow(this.#length + count);
    if (count < 16) {
      for (let i = 0; i < count; i++) this.#ids[this.#length + i] = ids[i] as number;
    } else {
      this.#ids.set(count === ids.length ? ids : ids.subarray(0, count), this.#length);
    }
    this.#length += count;
  }

  last(): number | undefined {
    return this.#length === 0 ? undefined : this.#ids[this.#length - 1];
  }

  /** A copy of exactly what was pushed. */
  toArray(): Int32Array {
    return this.#ids.slice(0, this.#length);
  }

  #grow(atLeast: number): void {
    const larger = new Int32Array(Math.max(atLeast, this.#ids.length * 2));
    larger.set(this.#ids.subarray(0, this.#length));
    this.#ids = larger;
  }
}
