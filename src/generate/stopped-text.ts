/** Text that ends before the first of some strings, passed on only as far as it cannot be part of one. */

/** Collects text up to the first stop string and passes on what can no longer be part of one. */
export class StoppedText {
  readonly #stop: readonly string[];
  readonly #onText: ((text: string) => void) | undefined;
  #sent = 0;
  text = "";
  stopped = false;
  /** The stop string that ended the text. */
  stoppedBy: string | null = null;

  constructor(stop: readonly string[], onText: ((text: string) => void) | undefined) {
    this.#stop = stop.filter((s) => s !== "");
    this.#onText = onText;
  }
  /** Adds text; true when a stop string is complete. */
  push(piece: string): boolean {
    this.text += piece;
    // What was sent cannot begin a stop string.
    const found = this.#stop.map((stop) => ({ stop, at: this.text.indexOf(stop, this.#sent) })).filter(({ at }) => at >= 0);
    const first = found.toSorted((a, b) => a.at - b.at)[0];
    if (first !== undefined) {
      this.text = this.text.slice(0, first.at);
      this.stopped = true;
      this.stoppedBy = first.stop;
      return true;
    }
    this.#send(this.text.length - this.#undecided());
    return false;
  }
  /** Length of the longest end of the text that begins a stop string. */
  #undecided(): number {
    const limit = this.text.length - this.#sent;
    let longest = 0;
    for (const stop of this.#stop) {
      for (let length = Math.min(stop.length - 1, limit); length > longest; length--) {
        if (this.text.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
  end(): void {
    this.#send(this.text.length);
  }
  #send(until: number): void {
    if (until <= this.#sent) return;
    this.#onText?.(this.text.slice(this.#sent, until));
    this.#sent = until;
  }
}
