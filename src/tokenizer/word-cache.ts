/**
 * Ids of words seen before. Natural text repeats its words, so this is where most of the speed of encoding comes from.
 * Bounded: when full it starts over, which costs less than keeping track of what was used when.
 */

const maxWords = 200_000;
const maxWordLength = 64;

export class WordCache {
  readonly #words = new Map<string, Int32Array>();

  get(word: string): Int32Array | undefined {
    return this.#words.get(word);
  }

  set(word: string, ids: Int32Array): void {
    if (word.length > maxWordLength) return;
    if (this.#words.size >= maxWords) this.#words.clear();
    // V8 keeps a long slice as a view of its parent text; a key must not keep a whole document alive.
    this.#words.set(word.length < 13 ? word : ` ${word}`.slice(1), ids);
  }
}
