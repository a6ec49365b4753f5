/** Groups of ranks: how a model is cut over them, how they communicate, and ranks as threads of this process. */
export {
  operationNames,
  type AxisTraffic,
  type Communicator,
  type LinkEmulation,
  type OperationName,
  type Pending,
  type SumDType,
  type Traffic,
  type TrafficTable,
} from "./communicator.ts";
export { startExchange, type ExchangeCounts, type InFlight } from "./exchange.ts";
export { activationDtype, TensorGroup, type GradientKind } from "./group.ts";
export { Lockstep } from "./lockstep.ts";
export { createLocalGroup, openLocalWorld, type LocalRankMemory } from "./local.ts";
export { axes, coordinatesOf, groupsOf, type Axis, type Coordinates, type MeshSizes } from "./mesh.ts";
export {
  describePlan,
  gigabytes,
  tensorParallelPlan,
  type RankPlan,
  type TensorParallelOptions,
  type TensorParallelPlan,
} from "../config/tensor-parallel.ts";
export { rankMemory, type MemoryFormat, type RankMemory, type ScaleLayout, type WeightFormat } from "../config/rank-memory.ts";
export { runRank, startRanks, type RankContext, type Ranks, type RanksOptions } from "./ranks.ts";
export {
  headSegments,
  kvHeadsOf,
  ownedKvHeads,
  wholeShare,
  type ExpertMode,
  type HeadSegment,
  type RankShare,
} from "../config/rank-share.ts";
export { addTraffic, copyTraffic, mergeAxes, trafficSince, trafficTable } from "./traffic.ts";
export { chooseRanks, commNames, findLauncher, threadsPerRank, type CommName, type Launcher, type RanksChoice } from "./launcher.ts";
export { MpiWorld, runMpiRank, type MpiOptions } from "./mpi.ts";
