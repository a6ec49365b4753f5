/** Dense checkpoints to MoE checkpoints. */
export { parseUpcycleOptions, upcycleTargets, type UpcycleOptions, type UpcycleTarget } from "./options.ts";
export { pairFindings, pairTableMarkdown, upcyclePairs, type Finding, type Pair, type PairSource, type Verdict } from "./pairs.ts";
export { probeUpcycled, promptRouterRows, type LayerRouting, type Probe } from "./probe.ts";
export { costRule, expectedMemory, type CostRule, type ExpectedMemory } from "./report.ts";
export { upcycledConfig, type Exactness } from "./target.ts";
export { upcycle, type TensorOrigin, type UpcycleExtras, type UpcycleReceipt } from "./upcycle.ts";
export { upcycleGap, type UpcycleGap } from "./verify.ts";
