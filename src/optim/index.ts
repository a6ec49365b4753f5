/** The optimizer and the learning-rate schedules. */
export { AdamW, clipFactor, type AdamWOptions, type AdamWState, type StepOptions, type StepResult } from "./adamw.ts";
export { decayShapes, learningRateAt, parseSchedule, scheduleFields, type DecayShape, type Schedule } from "./schedule.ts";
