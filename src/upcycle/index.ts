/** Dense checkpoints to MoE checkpoints. */
export {
  upcycle,
  upcycledConfig,
  upcycleTargets,
  type TensorOrigin,
  type UpcycleOptions,
  type UpcycleReceipt,
  type UpcycleTarget,
} from "./upcycle.ts";
export { upcycleGap, type UpcycleGap } from "./verify.ts";
