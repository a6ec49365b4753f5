/** What `moe plan --out` writes: the plan for the programs that run it, its timeline, and a report to look at. */
import type { ModelConfig } from "../config/model.ts";
import {
  chromeTrace,
  describeLayout,
  flagScaleConfig,
  LayoutEvaluation,
  megatronArguments,
  planPage,
  trainingLayout,
  type ExportContext,
  type PlanResult,
} from "../plan/index.ts";

/** Texts by name. */
export function planFiles(result: PlanResult, model: ModelConfig, source: string): Record<string, string> {
  const { best, report, cluster, options } = result;
  const devices = Array.from({ length: best.layout.pp }, (_, rank) => deviceOfRank(result, rank));
  const { sequenceLength, batchSequences } = report;
  const context: ExportContext = { model, sequenceLength, batchSequences, devices, software: options.workload.software };
  const layout = trainingLayout(best, model);
  const megatron = megatronArguments(best, context);
  const flagScale = flagScaleConfig(best, context);
  const { timeline } = new LayoutEvaluation(best.layout, { ...options, cluster }).simulate(best.stages, { timeline: true });
  const comment = (notes: readonly string[]): string => [describeLayout(best.layout), ...notes].map((note) => `# ${note}\n`).join("");
  return {
    "layout.json": `${JSON.stringify(layout.layout, null, 2)}\n`,
    "megatron-arguments.txt": comment(megatron.notes) + megatron.text,
    "flagscale.yaml": comment(flagScale.notes) + flagScale.text,
    "timeline.json": `${JSON.stringify(chromeTrace(timeline))}\n`,
    "plan.json": `${JSON.stringify(report, null, 2)}\n`,
    "report.html": planPage({ report, timeline, memory: best.memory, memoryLimits: best.memoryLimits, title: source, notes: layout.notes }),
  };
}

function deviceOfRank({ best, cluster }: PlanResult, rank: number): string {
  const first = rank * best.layout.dp * best.layout.tp;
  let end = 0;
  for (const { device, devicesPerNode, numNodes } of cluster.nodes) {
    end += devicesPerNode * numNodes;
    if (first < end) return device.name;
  }
  return cluster.nodes.at(-1)?.device.name ?? "";
}
