/** The menus of the site. */
import { existsSync, readdirSync } from "node:fs";
import type { DefaultTheme } from "vitepress";
import { repositoryUrl } from "./repository-links.ts";

type Items = DefaultTheme.SidebarItem[];
const docs = new URL("../", import.meta.url);

function group(text: string, pages: readonly (readonly [text: string, link: string])[]): DefaultTheme.SidebarItem {
  return { text, items: pages.map(([name, link]) => ({ text: name, link })) };
}

/** What typedoc made, kind by kind; nothing before it ran. Types that are not exported have pages, too, which those that mention them lead to. */
function apiSidebar(): Items {
  const folder = new URL("reference/api/", docs);
  const kinds = existsSync(folder) ? readdirSync(folder, { withFileTypes: true }) : [];
  const pages = (kind: string): (readonly [string, string])[] =>
    readdirSync(new URL(`${kind}/`, folder))
      .map((file) => file.replace(/\.md$/, ""))
      .map((name) => [name, `/reference/api/${kind}/${name}`] as const);
  return [
    group("Reference", [
      ["Configuration", "/reference/configuration"],
      ["Commands", "/reference/commands"],
      ["API", "/reference/api/"],
    ]),
    ...kinds
      .filter((entry) => entry.isDirectory() && entry.name !== "types")
      .map(({ name }) => group(`${name.charAt(0).toUpperCase()}${name.slice(1).replaceAll("-", " ")}`, pages(name))),
  ];
}

const guides = [
  ["Upcycle SmolLM2", "/guides/upcycle-smollm2"],
  ["Train with EDP under mpirun", "/guides/train-edp-mpirun"],
  ["Plan a run of 1536 GPUs", "/guides/plan-1536-gpus"],
  ["Quantize and serve", "/guides/quantize-and-serve"],
  ["Evaluate", "/guides/evaluate"],
] as const;

const techniques = [
  ["All of them", "/techniques/"],
  ["Upcycling", "/techniques/upcycling"],
  ["Gating logit normalization", "/techniques/gating-normalization"],
  ["Adaptive coefficients", "/techniques/adaptive-coefficients"],
  ["Balance losses", "/techniques/balance-losses"],
  ["Expert data parallelism", "/techniques/expert-data-parallel"],
  ["Non-uniform pipelines", "/techniques/non-uniform-pipeline"],
  ["ZeRO-1", "/techniques/zero-1"],
  ["FP8", "/techniques/fp8"],
  ["Non-uniform tensor parallelism", "/techniques/non-uniform-tensor-parallelism"],
  ["Continuous batching", "/techniques/continuous-batching"],
] as const;

function sidebar(): Items {
  return [
    group("Begin", [
      ["What this is", "/"],
      ["The first ten minutes", "/first-ten-minutes"],
      ["Platforms", "/platforms"],
    ]),
    group("Guides", guides),
    group("Techniques", techniques),
    group("How it works", [
      ["Layers of the source", "/design/overview"],
      ["The life of a token", "/life-of-a-token"],
      ["The life of a step", "/life-of-a-step"],
      ["Parallel training", "/design/parallel"],
      ["Serving", "/design/serving"],
    ]),
    group("In full", [
      ["Upcycling", "/upcycling"],
      ["Metrics of a run", "/metrics"],
      ["Layouts of ranks", "/layouts"],
      ["Clusters", "/cluster"],
      ["Planner", "/planner"],
      ["Its accuracy", "/planner-accuracy"],
      ["Its calibration", "/planner-calibration"],
      ["FP8", "/quantization"],
      ["Server", "/server"],
      ["Tensor parallelism", "/tensor-parallel"],
      ["Dashboard", "/dashboard"],
      ["Evaluation", "/evaluation"],
    ]),
    group("Lab", [
      ["The paper's claims in small", "/lab/"],
      ["Expert data parallelism", "/lab/edp"],
      ["Pipelines", "/lab/pipeline"],
    ]),
    group("Reference", [
      ["Configuration", "/reference/configuration"],
      ["Commands", "/reference/commands"],
      ["API", "/reference/api/"],
    ]),
    group("Project", [
      ["Dependencies", "/design/dependencies"],
      ["What failed", "/log"],
    ]),
  ];
}

export function englishTheme(): DefaultTheme.Config {
  return {
    nav: [
      { text: "First ten minutes", link: "/first-ten-minutes" },
      { text: "Guides", items: guides.map(([text, link]) => ({ text, link })) },
      { text: "Techniques", link: "/techniques/", activeMatch: "^/techniques/" },
      {
        text: "Reference",
        items: [
          { text: "Configuration", link: "/reference/configuration" },
          { text: "Commands", link: "/reference/commands" },
          { text: "API", link: "/reference/api/" },
          { text: "Platforms", link: "/platforms" },
        ],
      },
    ],
    sidebar: { "/": sidebar(), "/reference/api/": apiSidebar(), "/reference/api/types/": apiSidebar().slice(0, 1) },
    outline: { level: [2, 3] },
    editLink: { pattern: `${repositoryUrl}/edit/main/docs/:path`, text: "This page in the repository" },
  };
}

export function chineseTheme(): DefaultTheme.Config {
  return {
    nav: [
      { text: "十分钟上手", link: "/zh/first-ten-minutes" },
      { text: "全部文档（英文）", link: "/" },
    ],
    sidebar: [
      group("开始", [
        ["简介", "/zh/"],
        ["十分钟上手", "/zh/first-ten-minutes"],
      ]),
      group("英文文档", [
        ["平台", "/platforms"],
        ["技术", "/techniques/"],
        ["配置", "/reference/configuration"],
        ["命令", "/reference/commands"],
      ]),
    ],
    outline: { level: [2, 3], label: "本页内容" },
    docFooter: { prev: "上一页", next: "下一页" },
    darkModeSwitchLabel: "外观",
    lightModeSwitchTitle: "切换到浅色",
    darkModeSwitchTitle: "切换到深色",
    sidebarMenuLabel: "菜单",
    returnToTopLabel: "回到顶部",
    langMenuLabel: "语言",
    skipToContentLabel: "跳到正文",
    editLink: { pattern: `${repositoryUrl}/edit/main/docs/:path`, text: "在仓库中查看本页" },
  };
}
