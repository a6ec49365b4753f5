/** Units of configuration fields. Names carry them (`warmupSteps`, `memoryBytes`, `numHeads`); the few names that do not are listed. */

const units: Readonly<Record<string, string>> = {
  sequenceLength: "tokens",
  maxPositions: "tokens",
  originalMaxPositions: "tokens",
  "slidingWindow.size": "tokens",
  vocabSize: "ids",
  topK: "experts",
  topGroups: "groups",
  similarityInterval: "steps",
  keep: "checkpoints",
  "peakFlops.f32": "FLOP/s",
  "peakFlops.bf16": "FLOP/s",
  "peakFlops.f16": "FLOP/s",
  "peakFlops.fp8": "FLOP/s",
  memoryBandwidth: "bytes/s",
  bandwidth: "bytes/s",
  latency: "s",
  pricePerHour: "price/h",
  devicesPerNode: "devices",
  pp: "ranks",
  dp: "ranks",
  tp: "ranks",
  ep: "ranks",
  etp: "ranks",
};

const endings: Readonly<Record<string, string>> = {
  Steps: "steps",
  Sequences: "sequences",
  Tokens: "tokens",
  Layers: "layers",
  Seconds: "s",
  Bytes: "bytes",
};

/** The unit of the field at `path`, or empty: a plain number, a share of something, no number at all. */
export function unitOf(path: string): string {
  const listed = Object.entries(units).find(([name]) => path === name || path.endsWith(`.${name}`));
  if (listed !== undefined) return listed[1];
  const name = path.slice(path.lastIndexOf(".") + 1);
  const counted = /^num(?:Kv)?([A-Z]\w*)$/.exec(name)?.[1];
  if (counted !== undefined) return counted.toLowerCase();
  return Object.entries(endings).find(([ending]) => name.endsWith(ending))?.[1] ?? "";
}
