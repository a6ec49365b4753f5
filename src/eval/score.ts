/**
 * Log-likelihoods of continuations behind contexts. Every pair becomes one sequence (its last token needs no pass) with a
 * question at each place before a continuation's token; sequences that share beginnings compute them once (plan.ts). The
 * answers are independent of batch, order and sharing, to the bit.
 */
import type { Decoder } from "../model/index.ts";
import type { Tensor } from "../tensor/index.ts";
import { MoeError } from "../util/errors.ts";
import { planGroups, type PrefixGroup, type Sequence } from "./plan.ts";
import type { EncodedPair } from "./prompt.ts";
import { checkSignal, PrefixSlots, type SlotEntry } from "./slots.ts";

export interface EngineOptions {
  /** Tokens of one forward pass at most. */
  readonly batchTokens: number;
  /** Bytes for the KV cache at most (one sequence always fits). */
  readonly cacheBytes: number;
  /** Tokens that the model sees at most; longer contexts lose their beginning. */
  readonly maxLength: number;
  readonly signal?: AbortSignal | undefined;
}

export interface Score {
  /** Natural logarithm of the continuation's probability. */
  readonly logLikelihood: number;
  /** Each token of it was the most probable one. */
  readonly isGreedy: boolean;
}

/** One token of a request. */
interface Question {
  readonly request: number;
  readonly index: number;
  readonly token: number;
}

/** What is known of a request so far. */
interface Tally {
  readonly logProbabilities: Float64Array;
  missing: number;
  isGreedy: boolean;
}

/**
 * Scores pairs; `onScore` gets each as it is finished, in any order. Throws `configuration` for a continuation longer than
 * `maxLength`, `usage` when interrupted.
 */
export async function scorePairs(
  model: Decoder,
  pairs: readonly EncodedPair[],
  { batchTokens, cacheBytes, maxLength, signal }: EngineOptions,
  onScore: (request: number, score: Score) => void,
): Promise<void> {
  if (pairs.length === 0) return;
  const groups = planGroups(
    pairs.map((pair, request) => sequenceOf(pair, request, maxLength, model.config.vocabSize)),
    { merge: true },
  );
  const capacity = Math.max(...groups.map(({ members }) => Math.max(...members.map(({ ids }) => ids.length))));
  const maxSlots = Math.min(
    64,
    groups.reduce((n, { members }) => n + members.length, 0),
  );
  using slots = new PrefixSlots(model, { capacity, maxSlots, cacheBytes, batchTokens });
  const tallies = pairs.map(({ continuationIds: { length } }): Tally => ({
    logProbabilities: new Float64Array(length),
    missing: length,
    isGreedy: true,
  }));
  const answer = ({ request, index }: Question, logProbability: number, isGreedy: boolean): void => {
    const tally = tallies[request];
    if (tally === undefined) return;
    tally.logProbabilities[index] = logProbability;
    tally.isGreedy &&= isGreedy;
    if (--tally.missing === 0) {
      onScore(request, { logLikelihood: tally.logProbabilities.reduce((sum, x) => sum + x, 0), isGreedy: tally.isGreedy });
    }
  };
  for (const round of rounds(groups, slots.numSlots, batchTokens)) {
    checkSignal(signal);
    runRound(slots, round, answer);
    // Signals and progress get their turn.
    await new Promise((done) => setImmediate(done));
  }
}

function sequenceOf(
  { contextIds, continuationIds }: EncodedPair,
  request: number,
  maxLength: number,
  vocabSize: number,
): Sequence<Question> {
  const length = continuationIds.length;
  if (length > maxLength) {
    throw new MoeError("configuration", `evaluation: a continuation of ${length} tokens exceeds the ${maxLength} that the model sees`);
  }
  const whole = Int32Array.from([...Array.from(contextIds), ...Array.from(continuationIds)]);
  const ids = whole.subarray(Math.max(0, whole.length - maxLength - 1), whole.length - 1);
  const wanted = Array.from({ length }, (_, index) => {
    const token = continuationIds[index] ?? -1;
    if (!(token >= 0 && token < vocabSize))
      throw new MoeError("configuration", `evaluation: token ${token} of a continuation, expected one below ${vocabSize} (the vocabulary)`);
    return { position: ids.length - length + index, item: { request, index, token } };
  });
  return { ids, wanted };
}

type Placed = readonly { readonly group: PrefixGroup<Question>; readonly member: Sequence<Question> }[];

/** Members that are computed together: as many as there are slots and tokens in a pass, groups one after the other. */
function* rounds(groups: readonly PrefixGroup<Question>[], numSlots: number, batchTokens: number): Generator<Placed> {
  let round: Placed[number][] = [];
  let tokens = 0;
  for (const group of groups) {
    for (const member of group.members) {
      const length = member.ids.length - group.prefixLength;
      if (round.length === numSlots || (round.length > 0 && tokens + length > batchTokens)) {
        yield round;
        round = [];
        tokens = 0;
      }
      round.push({ group, member });
      tokens += length;
    }
  }
  if (round.length > 0) yield round;
}

function runRound(
  slots: PrefixSlots,
  round: Placed,
  answer: (question: Question, logProbability: number, isGreedy: boolean) => void,
): void {
  const free = new Set(Array.from({ length: slots.numSlots }, (_, slot) => slot));
  const questions = new Map<SlotEntry, ReadonlyMap<number, readonly Question[]>>();
  for (const { group, member } of round) {
    // A slot with this beginning if there is one, otherwise one that no member of this round begins with.
    const all = [...free];
    const slot =
      all.find((index) => slots.holds(index, group)) ?? all.find((index) => !slots.holds(index, round[0]?.group ?? group)) ?? all[0] ?? 0;
    free.delete(slot);
    slots.begin(slot, group);
    const at = Map.groupBy(member.wanted, ({ position }) => position - group.prefixLength);
    const byPosition = new Map([...at].map(([position, wanted]) => [position, wanted.map(({ item }) => item)]));
    questions.set({ slot, ids: member.ids.subarray(group.prefixLength), wanted: [...byPosition.keys()] }, byPosition);
  }
  slots.forward([...questions.keys()], (rows, logits) => {
    const asked = rows.map(({ entry, position }) => questions.get(entry)?.get(position) ?? []);
    answerRows(logits, asked, answer);
  });
}

/** Log-softmax of row r at the tokens of `asked[r]`: the cross-entropy kernel, once for the first tokens, once for the second and so on. */
function answerRows(
  logits: Tensor,
  asked: readonly (readonly Question[])[],
  answer: (question: Question, logProbability: number, isGreedy: boolean) => void,
): void {
  const { engine } = logits;
  const { kernels } = engine.backend;
  const [R, V] = [logits.dim(0), logits.dim(1)];
  const best = engine.empty([R], "i32");
  kernels.argmaxRows(best.ptr, logits.ptr, R, V);
  const bestIds = best.toInt32Array();
  const losses = engine.empty([R], "f32");
  const depth = asked.reduce((most, questions) => Math.max(most, questions.length), 0);
  for (let n = 0; n < depth; n++) {
    const targets = engine.from(
      Int32Array.from(asked, (questions) => questions[n]?.token ?? -1),
      [R],
      "i32",
    );
    kernels.crossEntropy(losses.ptr, 0, logits.ptr, targets.ptr, R, V, 1);
    for (const [r, loss] of losses.toFloat32Array().entries()) {
      const question = asked[r]?.[n];
      if (question === undefined) continue;
      if (Number.isNaN(loss))
        throw new MoeError("file", "evaluation: expected finite logits, got NaN; the model's weights are damaged or diverged");
      answer(question, -loss, bestIds[r] === question.token);
    }
  }
}
