/** The dashboard: a run in a browser. */
export { startDashboard, type Dashboard, type DashboardOptions } from "./start.ts";
export { loadPage, packageRoot } from "./page-files.ts";
export { TensorBoardWriter } from "./tensorboard.ts";
