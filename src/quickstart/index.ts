/** The whole loop on a small real text. */
export {
  quickstart,
  type QuickstartEvent,
  type QuickstartOptions,
  type QuickstartPhase,
  type QuickstartSample,
  type QuickstartSummary,
} from "./quickstart.ts";
