/**
 * Some lines at the bottom of a terminal that are drawn anew in place, while notes scroll by above them. A few times a second at most,
 * however often it is told something: a panel that flickers is not read, and one write a drawing keeps other output from tearing it.
 *
 * It moves the cursor up over what it drew last, so every line must fit the terminal: longer ones are cut (escape sequences do not count).
 */

/** What is needed of a terminal. */
export interface Terminal {
  write(text: string): unknown;
  readonly columns?: number;
  readonly rows?: number;
}

export interface LivePanelOptions {
  /** Least milliseconds between two drawings. */
  readonly intervalMs?: number;
  /** Milliseconds, for tests. */
  readonly now?: () => number;
}

const escape = String.fromCodePoint(27);
/** Colors and weights: what may stand in a line. */
// eslint-disable-next-line no-control-regex
const sequence = /\u001B\[[0-9;]*m/y;

export class LivePanel {
  readonly #terminal: Terminal;
  readonly #intervalMs: number;
  readonly #now: () => number;
  #render: ((columns: number, rows: number) => readonly string[]) | null = null;
  #drawn = 0;
  #last = Number.NEGATIVE_INFINITY;

  constructor(terminal: Terminal, { intervalMs = 200, now = () => performance.now() }: LivePanelOptions = {}) {
    this.#terminal = terminal;
    this.#intervalMs = intervalMs;
    this.#now = now;
  }

  /** Gives the panel new content: drawn now, or with a later call where the last drawing was a moment ago. */
  update(render: (columns: number, rows: number) => readonly string[]): void {
    this.#render = render;
    if (this.#now() - this.#last >= this.#intervalMs) this.#draw("");
  }
  /** A line above the panel, which stays. */
  log(line: string): void {
    this.#draw(`${line}\n`);
  }
  /** Draws the last content and leaves it there. */
  stop(): void {
    if (this.#render !== null) this.#draw("");
    this.#render = null;
    this.#drawn = 0;
  }

  #draw(above: string): void {
    const { columns = 80, rows = 24 } = this.#terminal;
    // A line as wide as the terminal would move the cursor to the next one by itself on some terminals.
    const lines = (this.#render?.(columns - 1, rows) ?? []).slice(0, Math.max(1, rows - 1)).map((line) => cut(line, columns - 1));
    const up = this.#drawn > 0 ? `${escape}[${this.#drawn}A` : "";
    // Back to the first column, and everything below away.
    this.#terminal.write(`${up}\r${escape}[J${above}${lines.map((line) => `${line}\n`).join("")}`);
    this.#drawn = lines.length;
    this.#last = this.#now();
  }
}

/** The first `columns` characters of a line that may hold colors, which are ended where it is cut. */
export function cut(line: string, columns: number): string {
  let shown = "";
  let width = 0;
  let colored = false;
  for (let at = 0; at < line.length;) {
    sequence.lastIndex = at;
    const found = sequence.exec(line)?.[0];
    if (found !== undefined) {
      shown += found;
      colored = found !== `${escape}[0m`;
      at += found.length;
      continue;
    }
    const character = String.fromCodePoint(line.codePointAt(at) ?? 0);
    if (width === columns) return colored ? `${shown}${escape}[0m` : shown;
    shown += character;
    width++;
    at += character.length;
  }
  return shown;
}
