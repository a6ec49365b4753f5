/**
 * Runs before every test file. Properties draw the same cases every time, so that a suite that turns red says something of the change before it;
 * `MOE_LONG` draws new ones.
 */
import fc from "fast-check";

if (process.env["MOE_LONG"] !== "1") fc.configureGlobal({ seed: 1 });
