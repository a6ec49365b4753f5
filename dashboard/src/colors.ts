/**
 * Colors that color-blind readers can tell apart. Sequential: cividis (Nuñez, Anderton, Renslow 2018), made for them. Diverging: blue to orange
 * over a neutral middle. Lines: Okabe and Ito's set, each with a dash pattern of its own besides. No meaning rests on red against green.
 */
export type Rgb = readonly [number, number, number];

/** Eleven points of cividis; between them colors are mixed. */
const cividis: readonly Rgb[] = [
  [0, 34, 78],
  [18, 53, 112],
  [59, 73, 108],
  [87, 93, 109],
  [112, 113, 115],
  [138, 134, 120],
  [165, 156, 116],
  [195, 179, 105],
  [225, 204, 85],
  [244, 221, 69],
  [254, 232, 56],
];

function mixed(stops: readonly Rgb[], at: number): Rgb {
  const place = Math.min(1, Math.max(0, at)) * (stops.length - 1);
  const low = Math.floor(place);
  const [a, b] = [stops[low] ?? [0, 0, 0], stops[Math.min(stops.length - 1, low + 1)] ?? [0, 0, 0]];
  const share = place - low;
  return [a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share];
}
export function css([r, g, b]: Rgb): string {
  return `rgb(${Math.round(r)} ${Math.round(g)} ${Math.round(b)})`;
}

/** 0 to 1. */
export function sequential(at: number): Rgb {
  return mixed(cividis, at);
}

const divergingLight: readonly Rgb[] = [
  [8, 48, 107],
  [33, 102, 172],
  [107, 160, 208],
  [184, 208, 228],
  [240, 240, 236],
  [250, 208, 155],
  [240, 150, 60],
  [196, 96, 10],
  [122, 52, 0],
];
const divergingDark: readonly Rgb[] = [
  [150, 205, 255],
  [94, 164, 236],
  [52, 114, 186],
  [38, 70, 108],
  [44, 49, 54],
  [104, 66, 26],
  [178, 102, 24],
  [232, 146, 56],
  [255, 204, 140],
];
/** Load over fair share: 1/4 and less at one end, 1 in the middle, 4 and more at the other. */
export function diverging(ratio: number, dark: boolean): Rgb {
  const at = 0.5 + Math.log2(Math.max(1e-9, ratio)) / 4;
  return mixed(dark ? divergingDark : divergingLight, at);
}

export const lineColors = ["#0072b2", "#c25b00", "#009e73", "#b0508c", "#8a6d00", "#4b8fd0", "#6a51a3", "#555555"] as const;
export const lineColorsDark = ["#5aaef0", "#f0954a", "#3cc79c", "#e39ac6", "#d9b53c", "#9accff", "#b5a1e6", "#bbbbbb"] as const;
export const dashes = ["", "6 3", "2 2", "8 3 2 3", "1 3", "10 4", "4 2 1 2", "3 5"] as const;

export function lineColor(index: number, dark: boolean): string {
  const colors = dark ? lineColorsDark : lineColors;
  return colors[index % colors.length] ?? colors[0];
}

/** An expert's background: hues around the circle, in three lightnesses, so that neighbors differ in both. Text on it is `expertInk`. */
export function expertColor(expert: number, numExperts: number, dark: boolean): string {
  const hue = Math.round(((expert * 360) / Math.max(1, numExperts) + 210) % 360);
  const level = expert % 3;
  return dark ? `hsl(${hue} 55% ${21 + 6 * level}%)` : `hsl(${hue} ${75 - 8 * level}% ${90 - 7 * level}%)`;
}
