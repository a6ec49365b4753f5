/** A trie over UTF-16 code units: which pieces begin at a place of a text. Nodes are numbers, edges a `PairMap`. */

import { PairMap } from "./pair-map.ts";

export class Trie {
  readonly #edges: PairMap;
  #ids = new Int32Array(1024).fill(-1);
  #count = 1;

  constructor(expected = 1024) {
    this.#edges = new PairMap(expected);
  }

  /** The node of the empty string. */
  readonly root = 0;

  /** Adds `text` with `id` >= 0; the last id given to a text stays. */
  add(text: string, id: number): void {
    let node = this.root;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      let child = this.#edges.get(node, unit);
      if (child < 0) {
        child = this.#count++;
        if (child >= this.#ids.length) {
          const larger = new Int32Array(this.#ids.length * 2).fill(-1);
          larger.set(this.#ids);
          this.#ids = larger;
        }
        this.#edges.set(node, unit, child);
      }
      node = child;
    }
    if (node !== this.root) this.#ids[node] = id;
  }

  /** The node below `node` along `unit`, -1 when there is none. */
  step(node: number, unit: number): number {
    return this.#edges.get(node, unit);
  }

  /** The id of the text that ends at `node`, -1 when none does. */
  idAt(node: number): number {
    return this.#ids[node] as number;
  }

  /** Length in code units of the longest added text that `text` has at `start`; 0 when none. */
  longestAt(text: string, start: number): number {
    let node = this.root;
    let longest = 0;
    for (let i = start; i < text.length; i++) {
      node = this.#edges.get(node, text.charCodeAt(i));
      if (node < 0) break;
      if ((this.#ids[node] as number) >= 0) longest = i + 1 - start;
    }
    return longest;
  }
}
