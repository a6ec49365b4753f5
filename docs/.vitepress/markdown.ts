/** Where VitePress and GitHub differ on the same Markdown, GitHub is right: pages are read there, too. And what a screen reader needs. */
import type { MarkdownRenderer } from "vitepress";

/** The address of a heading within its page. */
export function githubSlug(heading: string): string {
  return heading
    .trim()
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{M}\p{N}\p{Pc}\- ]/gu, "")
    .replaceAll(" ", "-");
}

/** A plugin of markdown-it: the empty cell in a table's corner is no heading of its column. */
export function emptyHeads(markdown: MarkdownRenderer): void {
  markdown.core.ruler.push("empty_heads", (state) => {
    state.tokens.forEach((open, i) => {
      const [text, close] = [state.tokens[i + 1], state.tokens[i + 2]];
      if (open.type !== "th_open" || text?.content !== "" || close?.type !== "th_close") return;
      open.tag = "td";
      close.tag = "td";
    });
  });
}
