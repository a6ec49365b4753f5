/**
 * The parts of Python that a score depends on: what counts as white space, and the random numbers that choose few-shot
 * examples. The reference evaluation (lm-evaluation-harness) is written in Python, and its prompts and samples are reproduced
 * to the character, so its strip and its `random.Random` are needed as they are, not as JavaScript has them.
 *
 * The generator is MT19937 (Matsumoto and Nishimura, 1998) seeded by `init_by_array`, as CPython does for integers.
 */

/** Characters for which Python's `str.isspace` holds. JavaScript's `\s` has U+FEFF too and lacks U+001C to U+001F and U+0085. */
const space = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const leading = new RegExp(`^[${space}]+`, "u");
const oneSpace = new RegExp(`[${space}]`, "u");
const runs = new RegExp(`[${space}]+`, "gu");

/** `text.strip()`. */
export function strip(text: string): string {
  return stripEnd(text.replace(leading, ""));
}
/** `text.rstrip()`. */
export function stripEnd(text: string): string {
  // From the end: a pattern would look at every run of spaces in a text, and that is quadratic in a long one.
  let end = text.length;
  while (end > 0 && oneSpace.test(text.charAt(end - 1))) end--;
  return text.slice(0, end);
}
/** `len(re.split(r"\s+", text))`: words, where white space at an end counts an empty word. */
export function countWords(text: string): number {
  return (text.match(runs)?.length ?? 0) + 1;
}
/** `str(value)` of what a sample holds. */
export function toPythonString(value: unknown): string {
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value === null || value === undefined) return "None";
  return String(value);
}

const stateSize = 624;
const shiftSize = 397;

/** `random.Random(seed)` of CPython for seeds from 0 to 2^32 - 1, with what drawing examples needs. */
export class PythonRandom {
  readonly #state = new Uint32Array(stateSize);
  #index = stateSize;

  constructor(seed: number) {
    const mt = this.#state;
    mt[0] = 19650218;
    for (let i = 1; i < stateSize; i++) mt[i] = Math.imul(1812433253, mixed(mt, i)) + i;
    let i = 1;
    for (let k = 0; k < stateSize; k++) {
      mt[i] = ((mt[i] ?? 0) ^ Math.imul(mixed(mt, i), 1664525)) + seed;
      i = this.#next(i);
    }
    for (let k = 0; k < stateSize - 1; k++) {
      mt[i] = ((mt[i] ?? 0) ^ Math.imul(mixed(mt, i), 1566083941)) - i;
      i = this.#next(i);
    }
    mt[0] = 0x80000000;
  }
  #next(i: number): number {
    if (i + 1 < stateSize) return i + 1;
    this.#state[0] = this.#state[stateSize - 1] ?? 0;
    return 1;
  }
  #refill(): void {
    const mt = this.#state;
    for (let i = 0; i < stateSize; i++) {
      const y = ((mt[i] ?? 0) & 0x80000000) | ((mt[(i + 1) % stateSize] ?? 0) & 0x7fffffff);
      mt[i] = (mt[(i + shiftSize) % stateSize] ?? 0) ^ (y >>> 1) ^ ((y & 1) === 0 ? 0 : 0x9908b0df);
    }
    this.#index = 0;
  }
  /** `getrandbits(32)`. */
  uint32(): number {
    if (this.#index === stateSize) this.#refill();
    let y = this.#state[this.#index++] ?? 0;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }
  /** A whole number from 0 to n - 1, for n from 1 to 2^31. */
  below(n: number): number {
    const bits = 32 - Math.clz32(n);
    for (;;) {
      const value = this.uint32() >>> (32 - bits);
      if (value < n) return value;
    }
  }
  /** `random.sample(population, k)`; k is at most the population's size. */
  sample<T>(population: readonly T[], k: number): T[] {
    const n = population.length;
    const setSize = 21 + (k > 5 ? 4 ** Math.ceil(Math.log(k * 3) / Math.log(4)) : 0);
    const chosen: number[] = [];
    if (n <= setSize) {
      const pool = Array.from({ length: n }, (_, i) => i);
      for (let i = 0; i < k; i++) {
        const j = this.below(n - i);
        chosen.push(pool[j] ?? 0);
        pool[j] = pool[n - i - 1] ?? 0;
      }
    } else {
      const taken = new Set<number>();
      while (taken.size < k) taken.add(this.below(n));
      chosen.push(...taken);
    }
    return chosen.map((i) => population[i] as T);
  }
}

function mixed(mt: Uint32Array, i: number): number {
  const before = mt[i - 1] ?? 0;
  return before ^ (before >>> 30);
}
