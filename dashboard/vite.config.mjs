/** The page is one HTML file, one script and one style sheet: nothing is loaded from elsewhere, nothing is inlined (its security policy forbids it). */
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: false, cssCodeSplit: false, reportCompressedSize: false },
});
