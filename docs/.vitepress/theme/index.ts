/** VitePress's own theme with the fonts of the reader's system. */
import Theme from "vitepress/theme-without-fonts";
import "./style.css";

// oxlint-disable-next-line import/no-default-export -- where VitePress looks
export default Theme;
