/**
 * Greedy completions of many prompts at once. Slots decode together; one that ends takes the next prompt at once. A
 * completion does not depend on its neighbours: each token's logits are the same bits in any batch.
 *
 * A completion ends at an end token, at a stop string (which is cut off, with what follows) or after `maxTokens`.
 */
import { type Decoder } from "../model/index.ts";
import type { Tensor } from "../tensor/index.ts";
import type { DecodeStream, Tokenizer } from "../tokenizer/tokenizer.ts";
import { MoeError } from "../util/errors.ts";
import { planGroups, type PrefixGroup, type Sequence } from "./plan.ts";
import type { EngineOptions } from "./score.ts";
import { checkSignal, PrefixSlots, type SlotEntry } from "./slots.ts";

export interface CompletionRequest {
  readonly promptIds: Int32Array;
  readonly until: readonly string[];
  readonly maxTokens: number;
}

/** Sequences that decode together at most: what few-row products gain from company ends about there. */
const maxSlots = 32;

/** A sequence under way in a slot. */
interface Running {
  readonly request: number;
  readonly stream: DecodeStream;
  text: string;
  count: number;
  next: number;
}

/**
 * Completes every request; `onText` gets each completion as it ends, in any order. Prompts that do not leave room for
 * `maxTokens` within `maxLength` lose their beginning. Throws `configuration` where there is no room for a prompt at all, `file` for logits that
 * are not numbers, `usage` when interrupted.
 */
export async function completePrompts(
  model: Decoder,
  tokenizer: Tokenizer,
  requests: readonly CompletionRequest[],
  { batchTokens, cacheBytes, maxLength, signal }: EngineOptions,
  onText: (request: number, text: string) => void,
): Promise<void> {
  if (requests.length === 0) return;
  const groups = planGroups(
    requests.map((request, index) => promptSequence(request, index, maxLength)),
    { merge: false },
  );
  const waiting = groups.flatMap((group) =>
    group.members.flatMap((member) => member.wanted.map(({ item }) => ({ group, member, request: item }))),
  );
  const capacity = Math.max(...waiting.map(({ member, request }) => member.ids.length + (requests[request]?.maxTokens ?? 0)));
  using slots = new PrefixSlots(model, { capacity, maxSlots: Math.min(maxSlots, waiting.length), cacheBytes, batchTokens });
  const endIds = new Set([...tokenizer.endIds, ...model.config.eosTokenIds]);
  const running = new Map<number, Running>();
  const sampled = (slot: number, id: number): void => {
    const state = running.get(slot);
    const request = state === undefined ? undefined : requests[state.request];
    if (state === undefined || request === undefined) return;
    if (!advance(state, id, request, tokenizer, endIds)) return;
    running.delete(slot);
    onText(state.request, beforeStop(state.text, request.until));
  };
  while (waiting.length > 0 || running.size > 0) {
    checkSignal(signal);
    const entries: SlotEntry[] = [...running].map(([slot, { next }]) => ({ slot, ids: Int32Array.of(next), wanted: [0] }));
    for (let slot = 0; slot < slots.numSlots && waiting.length > 0; slot++) {
      if (running.has(slot)) continue;
      const next = waiting.shift();
      if (next === undefined) break;
      entries.push(admit(slots, slot, next.group, next.member));
      running.set(slot, { request: next.request, stream: tokenizer.createDecodeStream(), text: "", count: 0, next: 0 });
    }
    slots.forward(entries, (rows, logits) => {
      for (const [r, id] of greedyIds(logits).entries()) sampled(rows[r]?.entry.slot ?? -1, id);
    });
    await new Promise((done) => setImmediate(done));
  }
}

function promptSequence({ promptIds, maxTokens }: CompletionRequest, index: number, maxLength: number): Sequence<number> {
  const room = maxLength - maxTokens;
  if (room <= 0)
    throw new MoeError(
      "configuration",
      `evaluation: ${maxTokens} new tokens leave no room for a prompt in the ${maxLength} that the model sees`,
    );
  const ids = promptIds.subarray(Math.max(0, promptIds.length - room));
  if (ids.length === 0) throw new MoeError("configuration", "evaluation: expected a prompt of at least one token, got none");
  return { ids, wanted: [{ position: ids.length - 1, item: index }] };
}

function admit(slots: PrefixSlots, slot: number, group: PrefixGroup<number>, member: Sequence<number>): SlotEntry {
  slots.begin(slot, group);
  const ids = member.ids.subarray(group.prefixLength);
  return { slot, ids, wanted: [ids.length - 1] };
}

/** Takes in the next token; true where the sequence ends with it. */
function advance(
  state: Running,
  id: number,
  { until, maxTokens }: CompletionRequest,
  tokenizer: Tokenizer,
  endIds: ReadonlySet<number>,
): boolean {
  if (endIds.has(id)) {
    state.text += state.stream.end();
    return true;
  }
  state.count++;
  state.next = id;
  const from = state.text.length;
  state.text += state.stream.push(id);
  const longest = Math.max(0, ...until.map(({ length }) => length));
  const recent = state.text.slice(Math.max(0, from - longest));
  // A control token leaves no text, but may itself be a stop string.
  const piece = state.text.length === from ? tokenizer.decode([id], { skipSpecialTokens: false }) : "";
  const stopped = until.some((stop) => stop !== "" && (recent.includes(stop) || piece.includes(stop)));
  if (!stopped && state.count < maxTokens) return false;
  if (!stopped) state.text += state.stream.end();
  return true;
}

/** The text before the first stop string in it. */
export function beforeStop(text: string, until: readonly string[]): string {
  return until.reduce((rest, stop) => (stop === "" ? rest : (rest.split(stop, 1)[0] ?? "")), text);
}

function greedyIds(logits: Tensor): Int32Array {
  const { engine } = logits;
  const [R, V] = [logits.dim(0), logits.dim(1)];
  const best = engine.empty([R], "i32");
  engine.backend.kernels.argmaxRows(best.ptr, logits.ptr, R, V);
  const finite = engine.zeros([1], "i32");
  engine.backend.kernels.allFinite(finite.ptr, logits.ptr, R * V);
  if (finite.item() === 0)
    throw new MoeError("file", "evaluation: expected finite logits, got others; the model's weights are damaged or diverged");
  return best.toInt32Array();
}
