import { render } from "preact";
import "./style.css";
import { App } from "./app.tsx";
import { live } from "./data.ts";

live.connect();
const root = document.querySelector("#app");
if (root !== null) render(<App />, root);
