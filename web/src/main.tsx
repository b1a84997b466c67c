import "./style/base.css";
import "./style/layout.css";
import "./style/talk.css";

import { render } from "preact";

import { start } from "./state";
import { applyTheme } from "./theme";
import { App } from "./view/app";

applyTheme();
render(<App />, document.getElementById("app")!);
void start();
