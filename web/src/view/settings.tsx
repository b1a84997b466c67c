/* The system prompt and how the model chooses its words. An empty field leaves it to the model. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import type { Settings as Values } from "../data/conversation";
import { settingsOpen } from "../layout";
import { chosen, configure, forgetKey, keyed, model } from "../state";
import { IconButton } from "./icons";

interface Numeric {
  name: "temperature" | "top_p" | "top_k" | "min_p" | "max_tokens" | "seed";
  label: string;
  hint: string;
  min: number;
  max?: number;
  step: number;
}

const NUMBERS: Numeric[] = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2, step: 0.05 },
  { name: "top_p", label: "Top-p", hint: "likeliest tokens up to this share", min: 0.01, max: 1, step: 0.01 },
  { name: "top_k", label: "Top-k", hint: "this many likeliest tokens, 0 for all", min: 0, step: 1 },
  { name: "min_p", label: "Min-p", hint: "at least this part of the likeliest", min: 0, max: 1, step: 0.01 },
  { name: "max_tokens", label: "Most tokens", hint: "of one answer", min: 1, step: 1 },
  { name: "seed", label: "Seed", hint: "the same seed gives the same answer", min: 0, step: 1 },
];

function change(values: Values): void {
  const settings = { ...chosen.value.settings, ...values };
  for (const [name, value] of Object.entries(settings)) {
    if (value === undefined || value === "") delete settings[name];
  }
  configure({ settings });
}

export function Settings() {
  useEffect(() => {
    document.querySelector<HTMLElement>("#system")?.focus();
    return () => document.querySelector<HTMLElement>("#settings-button")?.focus();
  }, []);
  const { system, settings } = chosen.value;
  return (
    <aside class="settings" aria-label="Settings">
      <div class="settings-head">
        <h2>Settings</h2>
        <IconButton icon="close" label="Close settings" onClick={() => (settingsOpen.value = false)} />
      </div>
      <label>
        System prompt
        <textarea
          id="system"
          class="field"
          rows={4}
          placeholder="How the model should answer"
          value={system}
          onInput={(event) => configure({ system: event.currentTarget.value })}
        />
      </label>
      <div class="numbers">
        {NUMBERS.map((one) => (
          <NumberField key={one.name} {...one} />
        ))}
      </div>
      <label>
        Stop at
        <small>one text a line; an answer ends before it</small>
        <textarea
          class="field"
          rows={2}
          value={settings.stop?.join("\n") ?? ""}
          onChange={(event) => {
            const lines = event.currentTarget.value.split("\n").filter(Boolean);
            change({ stop: lines.length ? lines : undefined });
          }}
        />
      </label>
      <JsonField name="schema" label="JSON schema" hint="answers are JSON of this shape" rows={4} />
      <JsonField
        name="tools"
        label="Tools"
        hint="functions that the model may call, as the API takes them; you give the results"
        rows={4}
      />
      {model.value?.context && (
        <p class="hint">The model reads {model.value.context.toLocaleString()} tokens at once.</p>
      )}
      <button type="button" class="button" onClick={() => configure({ system: "", settings: {} })}>
        Back to the model’s own
      </button>
      {keyed.value && (
        <button type="button" class="button" onClick={() => void forgetKey()}>
          Forget the API key
        </button>
      )}
    </aside>
  );
}

function NumberField({ name, label, hint, min, max = Infinity, step }: Numeric) {
  const wrong = useSignal(false);
  const read = ({ value, validity }: HTMLInputElement): void => {
    const number = value === "" ? undefined : Number(value);
    const fits = number === undefined || (number >= min && number <= max && (step < 1 || Number.isInteger(number)));
    wrong.value = validity.badInput || !fits; // then the last good value stays
    if (!wrong.value) change({ [name]: number });
  };
  return (
    <label>
      {label}
      <small>{hint}</small>
      <input
        class="field"
        type="number"
        inputMode="decimal"
        placeholder="model’s own"
        min={min}
        max={max === Infinity ? undefined : max}
        step={step}
        aria-invalid={wrong.value}
        value={chosen.value.settings[name] ?? ""}
        onInput={(event) => read(event.currentTarget)}
      />
      {wrong.value && <small class="problem">{range(min, max)}</small>}
    </label>
  );
}

const range = (min: number, max: number): string =>
  max === Infinity ? `a whole number, ${min} or more` : `between ${min} and ${max}`;

interface Json {
  name: "schema" | "tools";
  label: string;
  hint: string;
  rows: number;
}

function JsonField({ name, label, hint, rows }: Json) {
  const problem = useSignal("");
  const check = (text: string): void => {
    try {
      if (text.trim()) JSON.parse(text);
      problem.value = "";
    } catch (error) {
      problem.value = `Not JSON yet: ${(error as Error).message}`;
    }
    change({ [name]: text.trim() ? text : undefined });
  };
  return (
    <label>
      {label}
      <small>{hint}</small>
      <textarea
        class="field mono"
        rows={rows}
        spellcheck={false}
        aria-invalid={problem.value !== ""}
        value={chosen.value.settings[name] ?? ""}
        onInput={(event) => check(event.currentTarget.value)}
      />
      {problem.value && <small class="problem">{problem.value}</small>}
    </label>
  );
}
