/**
 * The documentation as a site. Pages are plain Markdown that reads the same on GitHub; what differs is here: links that leave `docs/` become
 * links to the repository, README.md is the index of its folder. The built site is static and asks nothing of any network.
 *
 * DOCS_BASE is the path that the site is served under, `/` by default.
 */
import { defineConfig } from "vitepress";
import { emptyHeads, githubSlug } from "./markdown.ts";
import { chineseTheme, englishTheme } from "./navigation.ts";
import { repositoryLinks, repositoryUrl } from "./repository-links.ts";

// oxlint-disable-next-line import/no-default-export -- where VitePress looks
export default defineConfig({
  title: "moe.ts",
  description: "Mixture-of-Experts language models, end to end, in TypeScript",
  base: process.env["DOCS_BASE"] ?? "/",
  rewrites: { "lab/README.md": "lab/index.md" },
  srcExclude: ["node_modules/**"],
  transformPageData: ({ relativePath, frontmatter }) => {
    // Made when the site is built: not in the repository.
    if (relativePath.startsWith("reference/api/")) frontmatter["editLink"] = false;
  },
  head: [["link", { rel: "icon", type: "image/svg+xml", href: `${process.env["DOCS_BASE"] ?? "/"}icon.svg` }]],
  locales: {
    root: { label: "English", lang: "en", themeConfig: englishTheme() },
    zh: { label: "简体中文", lang: "zh-CN", description: "混合专家语言模型，从头到尾，用 TypeScript", themeConfig: chineseTheme() },
  },
  themeConfig: {
    // Most pages have no twin in the other language: the menu leads to that language's first page.
    i18nRouting: false,
    socialLinks: [{ icon: "github", link: repositoryUrl }],
    search: {
      provider: "local",
      options: {
        _render: (source, env, markdown) => (env.relativePath.startsWith("reference/api/types/") ? "" : markdown.render(source, env)),
        miniSearch: {
          // Chinese is written without spaces: every character is a word.
          options: { tokenize: (text) => text.toLowerCase().match(/\p{Script=Han}|[^\s\p{P}\p{Script=Han}]+/gu) ?? [] },
        },
        locales: {
          zh: {
            translations: {
              button: { buttonText: "搜索", buttonAriaLabel: "搜索" },
              modal: {
                displayDetails: "显示详细列表",
                resetButtonTitle: "清除",
                backButtonTitle: "关闭",
                noResultsText: "没有结果：",
                footer: { selectText: "选择", navigateText: "切换", closeText: "关闭" },
              },
            },
          },
        },
      },
    },
  },
  markdown: {
    math: true,
    theme: { light: "github-light-high-contrast", dark: "github-dark-high-contrast" },
    anchor: { slugify: githubSlug },
    config: (markdown) => {
      markdown.use(repositoryLinks);
      markdown.use(emptyHeads);
    },
  },
});
