/* Markdown to a DOM that is safe to show: no HTML of the model's, nothing loaded from elsewhere. */

import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import csharp from "highlight.js/lib/languages/csharp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import dockerfile from "highlight.js/lib/languages/dockerfile";
import go from "highlight.js/lib/languages/go";
import ini from "highlight.js/lib/languages/ini";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import kotlin from "highlight.js/lib/languages/kotlin";
import makefile from "highlight.js/lib/languages/makefile";
import php from "highlight.js/lib/languages/php";
import python from "highlight.js/lib/languages/python";
import ruby from "highlight.js/lib/languages/ruby";
import rust from "highlight.js/lib/languages/rust";
import shell from "highlight.js/lib/languages/shell";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";
import { Marked } from "marked";
import type { Token } from "marked";

// prettier-ignore
const languages = {
  bash, c, cpp, csharp, css, diff, dockerfile, go, ini, java, javascript, json, kotlin, makefile, php, python, ruby, rust,
  shell, sql, typescript, xml, yaml,
};
for (const [name, language] of Object.entries(languages)) hljs.registerLanguage(name, language);

const HIGHLIGHTED = 50_000; // characters; longer code stays plain, so that a page never hangs
const entities: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escaped = (text: string): string => text.replace(/[&<>"]/g, (sign) => entities[sign]!);

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escaped(text),
    // The page has headings of its own above those of an answer.
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
    link({ href, tokens }) {
      return `<a href="${escaped(href)}" target="_blank" rel="noopener noreferrer">${this.parser.parseInline(tokens)}</a>`;
    },
    image({ href, text }) {
      if (href.startsWith("data:image/")) return `<img src="${escaped(href)}" alt="${escaped(text)}">`;
      return `<a href="${escaped(href)}" target="_blank" rel="noopener noreferrer">${escaped(text || href)}</a>`;
    },
  },
});

// prettier-ignore
const TAGS = [
  "a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "img", "input", "li", "ol", "p", "pre", "span",
  "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
];
const ATTRIBUTES = ["align", "alt", "checked", "class", "disabled", "href", "rel", "src", "start", "target", "type"];

function clean(html: string): DocumentFragment {
  return DOMPurify.sanitize(html, { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ATTRIBUTES, RETURN_DOM_FRAGMENT: true });
}

/** The top-level blocks of a text. While it grows only the last one changes, so only that is rendered again. */
export function blocks(text: string): Token[] {
  return marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
}

export function rendered(block: Token): DocumentFragment {
  const fragment = clean(marked.parser([block]));
  for (const code of fragment.querySelectorAll("pre > code")) frame(code as HTMLElement);
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = element("div", "scroller");
    scroller.tabIndex = 0;
    table.replaceWith(scroller);
    scroller.append(table);
  }
  for (const box of fragment.querySelectorAll("input")) box.setAttribute("aria-label", "Task");
  return fragment;
}

function element(tag: string, className: string, text = ""): HTMLElement {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Code in colour, in a frame with its language and a button that copies it. */
function frame(code: HTMLElement): void {
  const language = /language-(\S+)/.exec(code.className)?.[1]?.toLowerCase() ?? "";
  highlight(code, language);
  const pre = code.parentElement!;
  pre.tabIndex = 0; // wide code is scrolled with the keyboard, too
  const box = element("div", "code");
  const head = element("div", "code-head");
  const button = element("button", "quiet", "Copy") as HTMLButtonElement;
  button.type = "button";
  button.dataset.copy = "";
  button.setAttribute("aria-label", "Copy code");
  head.append(element("span", "", language), button);
  pre.replaceWith(box);
  box.append(head, pre);
}

export function highlight(code: HTMLElement, language: string): void {
  const text = code.textContent ?? "";
  if (!hljs.getLanguage(language) || text.length > HIGHLIGHTED) return;
  code.replaceChildren(clean(hljs.highlight(text, { language, ignoreIllegals: true }).value));
}

/** Copies the code beside a pressed copy button. */
export function copyCode(event: Event): void {
  const button = (event.target as Element).closest<HTMLElement>("[data-copy]");
  const text = button?.closest(".code")?.querySelector("pre")?.textContent?.replace(/\n$/, "");
  if (button && text) void copy(text).then((done) => flash(button, done ? "Copied" : "Not allowed"));
}

function flash(button: HTMLElement, line: string): void {
  button.textContent = line;
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

/** Without HTTPS, browsers offer the clipboard on this machine only: then the old way. */
export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
