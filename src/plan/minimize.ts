/**
 * The simplex method of Nelder and Mead ("A simplex method for function minimization", 1965), restarted: no derivatives, no random
 * numbers, the same answer every time. For a dozen parameters and objectives with kinks (absolute errors, waves of tiles).
 *
 * Reflection 1, expansion 2, contraction 1/2, shrinking 1/2. A simplex can collapse before it reaches a minimum; every restart builds a new one
 * around the best point, with steps of the other sign and half the size.
 */
export interface MinimizeOptions {
  /** First step of each coordinate. Default 0.3. */
  readonly step?: number;
  /** Simplices. Default 4. */
  readonly restarts?: number;
  /** Iterations of each. Default 100 times the number of coordinates. */
  readonly iterations?: number;
  /** A simplex ends where its values differ by less than this, relative to the best. Default 1e-5. */
  readonly tolerance?: number;
}

export interface Minimum {
  readonly x: readonly number[];
  readonly value: number;
}

interface Vertex {
  x: readonly number[];
  value: number;
}

/** Minimizes `f` from `start`. A value that is not a number counts as infinite. */
export function minimize(f: (x: readonly number[]) => number, start: readonly number[], options: MinimizeOptions = {}): Minimum {
  const { step = 0.3, restarts = 4, iterations = 100 * start.length, tolerance = 1e-5 } = options;
  const at = (x: readonly number[]): Vertex => {
    const value = f(x);
    return { x, value: Number.isNaN(value) ? Infinity : value };
  };
  let best = at(start);
  if (start.length === 0) return best;
  for (let restart = 0; restart < restarts; restart++) {
    const size = step * (restart % 2 === 0 ? 1 : -1) * 0.5 ** Math.floor((restart + 1) / 2);
    const simplex = [best, ...start.map((_, i) => at(best.x.map((value, j) => (i === j ? value + size : value))))];
    best = contract(at, simplex, iterations, tolerance);
  }
  return best;
}

/** Runs one simplex to its end and returns its best vertex. */
function contract(at: (x: readonly number[]) => Vertex, simplex: Vertex[], iterations: number, tolerance: number): Vertex {
  const n = simplex.length - 1;
  for (let i = 0; i < iterations; i++) {
    simplex.sort((a, b) => a.value - b.value);
    const [best, worst, second] = [simplex[0], simplex[n], simplex[n - 1]];
    if (best === undefined || worst === undefined || second === undefined) break;
    if (worst.value - best.value <= tolerance * Math.abs(best.value)) break;
    const center = best.x.map((_, j) => simplex.slice(0, n).reduce((sum, { x }) => sum + (x[j] ?? 0), 0) / n);
    const along = (t: number): Vertex => at(center.map((c, j) => c + t * ((worst.x[j] ?? 0) - c)));
    const reflected = along(-1);
    if (reflected.value < best.value) {
      const expanded = along(-2);
      simplex[n] = expanded.value < reflected.value ? expanded : reflected;
    } else if (reflected.value < second.value) simplex[n] = reflected;
    else {
      const inner = along(reflected.value < worst.value ? -0.5 : 0.5);
      if (inner.value < Math.min(worst.value, reflected.value)) simplex[n] = inner;
      else for (let k = 1; k <= n; k++) simplex[k] = at(best.x.map((b, j) => b + 0.5 * ((simplex[k]?.x[j] ?? b) - b)));
    }
  }
  return simplex.reduce((a, b) => (b.value < a.value ? b : a));
}
