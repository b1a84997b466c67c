/* Light and dark: the system's, until the user says otherwise. */

import { signal } from "@preact/signals";

type Theme = "system" | "light" | "dark";

const KEY = "herder.theme";
const NEXT: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };

const stored = localStorage.getItem(KEY);
export const theme = signal<Theme>(stored === "light" || stored === "dark" ? stored : "system");

export function applyTheme(): void {
  document.documentElement.dataset.theme = theme.value;
}

export function nextTheme(): void {
  theme.value = NEXT[theme.value];
  localStorage.setItem(KEY, theme.value);
  applyTheme();
}
