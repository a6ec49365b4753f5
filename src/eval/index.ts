/** Scores of models on tasks. */
export { evaluateTasks, outputFolder, type EvalProgress, type EvaluateOptions, type Evaluation } from "./evaluate.ts";
export { tableRows, type EvalResults } from "./report.ts";
export { allTasks, chooseTasks } from "./tasks/registry.ts";
export { writeEvaluation } from "./write.ts";
