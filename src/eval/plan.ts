/**
 * Which token sequences are computed together. Sequences are sorted as words in a dictionary, so those that begin alike are
 * neighbours; one that is the beginning of the next needs no pass of its own, and neighbours with a long common beginning
 * form a group that computes it once. Lengths need no padding (batches are flat), so groups go longest first only to meet
 * the largest memory at once and to give time estimates that fall.
 */

/** A sequence and the places whose next-token distribution is wanted. */
export interface Sequence<T> {
  readonly ids: Int32Array;
  /** What is asked at a position (of `ids`), ascending. */
  readonly wanted: readonly { readonly position: number; readonly item: T }[];
}

export interface PrefixGroup<T> {
  /** Tokens that all members begin with; shorter than every member and before every wanted position. */
  readonly prefixLength: number;
  readonly members: readonly Sequence<T>[];
}

/** Length of the common beginning. */
export function commonPrefix(a: Int32Array, b: Int32Array): number {
  const limit = Math.min(a.length, b.length);
  for (let i = 0; i < limit; i++) if (a[i] !== b[i]) return i;
  return limit;
}

function compare(a: Int32Array, b: Int32Array): number {
  const at = commonPrefix(a, b);
  return at === a.length || at === b.length ? a.length - b.length : (a[at] ?? 0) - (b[at] ?? 0);
}

/**
 * Groups of the sequences, longest first. Sequences have at least one id and one wanted position. `merge`: one that another begins with
 * is left out, and what it wants is asked of the other (right for scoring; a prompt that is to be completed stays itself).
 */
export function planGroups<T>(sequences: readonly Sequence<T>[], { merge }: { merge: boolean }): readonly PrefixGroup<T>[] {
  const ordered = sequences.toSorted((a, b) => compare(a.ids, b.ids));
  const sorted = merge ? merged(ordered) : ordered;
  const groups: PrefixGroup<T>[] = [];
  let members: Sequence<T>[] = [];
  let prefixLength = 0;
  const close = (): void => {
    if (members.length > 0) groups.push({ prefixLength: members.length > 1 ? prefixLength : 0, members });
  };
  for (const sequence of sorted) {
    const last = members.at(-1);
    const shared = last === undefined ? 0 : Math.min(prefixLength, usable(sequence), commonPrefix(last.ids, sequence.ids));
    // A member more must not make the common beginning so short that the tokens saved become fewer.
    if (last !== undefined && shared > 0 && shared * members.length >= prefixLength * (members.length - 1)) {
      members.push(sequence);
      prefixLength = shared;
      continue;
    }
    close();
    members = [sequence];
    prefixLength = usable(sequence);
  }
  close();
  const longest = (group: PrefixGroup<T>): number => Math.max(...group.members.map(({ ids }) => ids.length));
  return groups
    .map((group) => ({ group, length: longest(group) }))
    .toSorted((a, b) => b.length - a.length)
    .map(({ group }) => group);
}

/** Tokens that may be shared: not the last one, nor one whose distribution is wanted. */
function usable<T>({ ids, wanted }: Sequence<T>): number {
  return Math.min(ids.length - 1, wanted[0]?.position ?? ids.length - 1);
}

/** Sequences (sorted) without those that another begins with; what they want is asked of the longer one. */
function merged<T>(sorted: readonly Sequence<T>[]): readonly Sequence<T>[] {
  const kept: Sequence<T>[] = [];
  let wanted: Sequence<T>["wanted"][number][] = [];
  for (const [i, sequence] of sorted.entries()) {
    wanted.push(...sequence.wanted);
    const next = sorted[i + 1];
    if (next !== undefined && commonPrefix(sequence.ids, next.ids) === sequence.ids.length) continue;
    kept.push({ ids: sequence.ids, wanted: wanted.toSorted((a, b) => a.position - b.position) });
    wanted = [];
  }
  return kept;
}
