/**
 * Batches that go through the layers in turns: wherever one has rows under way between ranks, another computes. With two, the exchange of tokens of
 * one runs beside the attention or the experts of the other, in the forward pass as written here, and in the backward pass in reverse, because the tape
 * has recorded it so.
 */
import type { Engine, OpenScope, Tensor } from "../tensor/index.ts";

/** A batch's way through the layers: yields a layer's outputs when it is through it, and nothing while rows are under way. */
export type LayerSteps = Generator<readonly Tensor[] | undefined, void>;

/** Runs all to their ends. Outputs that they yield go to the current scope; what else a layer makes is disposed with it. */
export function takeTurns(engine: Engine, batches: readonly LayerSteps[]): void {
  const scopes = batches.map((): OpenScope | null => null);
  const waiting = new Set(batches.keys());
  while (waiting.size > 0) {
    for (const i of waiting) {
      // Until it waits for others.
      for (;;) {
        const scope = scopes[i] ?? engine.openScope();
        scopes[i] = scope;
        const { done, value } = scope.run(() => batches[i]?.next() ?? { done: true, value: undefined });
        if (done !== true && value === undefined) break;
        scope.end(value ?? []);
        scopes[i] = null;
        if (done !== true) continue;
        waiting.delete(i);
        break;
      }
    }
  }
}
