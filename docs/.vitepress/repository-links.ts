/**
 * Links of pages that lead out of the site. Pages are written for GitHub: `../src/nn/moe/block.ts` is a file beside them. On the site it becomes a
 * link to the repository; so does a file of `docs/` that is not a page, and a path of the repository that a page only names, as `src/nn/moe/block.ts`.
 * A link to nothing is an error, as VitePress has it for pages.
 */
import { readFileSync, statSync } from "node:fs";
import { dirname, join, posix, relative, sep } from "node:path";
import { fileURLToPath } from "node:url";
import type { MarkdownEnv, MarkdownRenderer } from "vitepress";

const docs = fileURLToPath(new URL("..", import.meta.url));
const root = dirname(docs.replace(/[/\\]$/, ""));

/** Where the repository is, from its `package.json`. */
export const repositoryUrl: string = readRepositoryUrl();

function readRepositoryUrl(): string {
  const { repository } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { repository: { url: string } };
  return repository.url.replace(/^git\+/, "").replace(/\.git$/, "");
}

/** A file or folder of the repository at its address there; undefined where nothing of that name is. */
function addressOf(path: string): string | undefined {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return undefined;
  const inRepository = relative(root, path).split(sep).join("/");
  return `${repositoryUrl}/${stat.isDirectory() ? "tree" : "blob"}/main/${inRepository}`;
}

/** Where a link of the page at `pagePath` (from docs/) leads on the site. */
export function siteLink(href: string, pagePath: string): string {
  if (/^([a-z][a-z\d+.-]*:|\/|#)/i.test(href) || href === "") return href;
  const [, path = "", rest = ""] = /^([^?#]*)(.*)$/.exec(href) ?? [];
  const target = posix.normalize(posix.join(posix.dirname(pagePath), decodeURI(path)));
  if (!target.startsWith("../") && /\.(md|html)$/.test(target)) return href.replace(/README\.md(?=$|[?#])/, "index.md");
  const isFolderOfPages = ["index.md", "README.md"].some((name) => statSync(join(docs, target, name), { throwIfNoEntry: false })?.isFile());
  if (isFolderOfPages) return `${path.replace(/\/?$/, "/")}${rest}`;
  const address = addressOf(join(docs, target));
  if (address === undefined) throw new Error(`${pagePath}: dead link ${href}`);
  return address + rest;
}

const named = /^(?:\.ci|benchmarks|dashboard|docs|examples|native|recipes|scripts|src|test)\/[\w./-]+$/;

/** The link of a path that a page names in code, or undefined: it names something else, or what is made by a run. */
function namedLink(text: string, pagePath: string): string | undefined {
  if (!named.test(text)) return undefined;
  const page = /^docs\/(.*\.md)$/.exec(text)?.[1];
  if (page === undefined) return addressOf(join(root, text));
  if (statSync(join(docs, page), { throwIfNoEntry: false }) === undefined || page === pagePath) return undefined;
  return siteLink(posix.relative(posix.dirname(pagePath), page), pagePath);
}

/** A plugin of markdown-it. */
export function repositoryLinks(markdown: MarkdownRenderer): void {
  markdown.core.ruler.push("repository_links", (state) => {
    const { relativePath } = state.env as MarkdownEnv;
    for (const { type, children } of state.tokens) {
      if (type !== "inline" || children === null) continue;
      let inLink = 0;
      for (let i = 0; i < children.length; i++) {
        const token = children[i];
        if (token?.type === "link_open") {
          inLink++;
          token.attrSet("href", siteLink(token.attrGet("href") ?? "", relativePath));
        } else if (token?.type === "link_close") inLink--;
        else if (token?.type === "code_inline" && inLink === 0) {
          const href = namedLink(token.content, relativePath);
          if (href === undefined) continue;
          const open = new state.Token("link_open", "a", 1);
          open.attrSet("href", href);
          children.splice(i, 1, open, token, new state.Token("link_close", "a", -1));
          i += 2;
        }
      }
    }
  });
}
