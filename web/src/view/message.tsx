/* One turn: what was said, what it cost, and what can be done with it. */

import { useSignal } from "@preact/signals";
import type { Token } from "marked";
import { memo } from "preact/compat";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";

import { alternatives } from "../data/conversation";
import type { Call, Stats, Turn } from "../data/conversation";
import { editing, focusComposer } from "../layout";
import { answering, ask, current, giveResult, openCalls, regenerate, showAlternative } from "../state";
import { FailureNote } from "./failure";
import { IconButton } from "./icons";
import { blocks, copy, highlight, rendered } from "./markdown";

interface Props {
  turn: Turn;
  live: boolean;
  last: boolean;
}

const SPEAKERS = { user: "You", assistant: "Answer", tool: "Result" };

/** Drawn again only when it changes itself, not with every word of the answer below it. */
export const Message = memo(({ turn, live, last }: Props) => {
  return (
    <article class={`message ${turn.role}${last ? " last" : ""}`} aria-busy={live} aria-label={SPEAKERS[turn.role]}>
      {turn.role === "user" && <Question turn={turn} />}
      {turn.role === "assistant" && <Answer turn={turn} live={live} />}
      {turn.role === "tool" && <pre class="result">{turn.text}</pre>}
      {turn.failure && <FailureNote turn={turn} last={last} />}
      {!live && editing.value !== turn.id && turn.role !== "tool" && <Actions turn={turn} />}
    </article>
  );
});

function Question({ turn }: { turn: Turn }) {
  if (editing.value === turn.id) return <Editor turn={turn} />;
  return (
    <div class="bubble">
      {turn.images?.map((url, at) => (
        <img key={url} src={url} alt={`Picture ${at + 1}`} />
      ))}
      {turn.text && <p>{turn.text}</p>}
    </div>
  );
}

function Editor({ turn }: { turn: Turn }) {
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => area.current?.focus(), []);
  const close = (): void => {
    editing.value = null;
    focusComposer();
  };
  const save = (): void => {
    const text = area.current!.value.trim();
    close();
    if (text || turn.images?.length) ask(text, turn.images ?? [], turn);
  };
  return (
    <div class="editor">
      <textarea
        ref={area}
        aria-label="Edit the message"
        defaultValue={turn.text}
        rows={Math.min(12, turn.text.split("\n").length + 1)}
        onKeyDown={(event) => {
          if (event.key === "Escape") {
            event.stopPropagation();
            close();
          } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            save();
          }
        }}
      />
      <div class="row end">
        <button type="button" class="button" onClick={close}>
          Cancel
        </button>
        <button type="button" class="button primary" onClick={save}>
          Ask again
        </button>
      </div>
    </div>
  );
}

function Answer({ turn, live }: { turn: Turn; live: boolean }) {
  const parts = useMemo(() => blocks(turn.text), [turn.text]);
  const waiting = live && !turn.text && !turn.reasoning && !turn.calls;
  return (
    <>
      {turn.reasoning && (
        <details class="reasoning">
          <summary>{live && !turn.text ? "Thinking…" : "Thoughts"}</summary>
          <p>{turn.reasoning}</p>
        </details>
      )}
      {waiting && <p class="waiting" aria-label="Waiting for the answer" role="img" />}
      <div class="prose">
        {parts.map((block, at) => (
          <Block key={at} raw={block.raw} block={block} />
        ))}
      </div>
      {turn.calls?.map((call) => (
        <CallView key={call.id} call={call} live={live} />
      ))}
    </>
  );
}

/** One block of Markdown; rendered again only when its own text changes. */
const Block = memo(
  ({ block }: { raw: string; block: Token }) => {
    const place = useRef<HTMLDivElement>(null);
    useLayoutEffect(() => place.current!.replaceChildren(rendered(block)), [block.raw]);
    return <div ref={place} />;
  },
  (before, after) => before.raw === after.raw,
);

function CallView({ call, live }: { call: Call; live: boolean }) {
  const code = useRef<HTMLElement>(null);
  const text = pretty(call.arguments);
  useLayoutEffect(() => {
    code.current!.textContent = text;
    highlight(code.current!, "json");
  }, [text]);
  const open = !live && current.value !== null && openCalls(current.value).includes(call.id);
  return (
    <section class="call" aria-label={`Call of ${call.name}`}>
      <p>
        Calls <code>{call.name}</code>
      </p>
      <pre tabIndex={0}>
        <code ref={code} />
      </pre>
      {open && <ResultField call={call} />}
    </section>
  );
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // still on its way
  }
}

function ResultField({ call }: { call: Call }) {
  const text = useSignal("");
  const send = (event: Event): void => {
    event.preventDefault();
    giveResult(text.value, call.id);
  };
  return (
    <form class="row" onSubmit={send}>
      <input
        class="field"
        aria-label={`Result of ${call.name}`}
        placeholder="Its result"
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
      />
      <button class="button">Give</button>
    </form>
  );
}

function Actions({ turn }: { turn: Turn }) {
  const copied = useSignal(false);
  const copyText = async (): Promise<void> => {
    copied.value = await copy(turn.text);
    setTimeout(() => (copied.value = false), 1500);
  };
  const busy = answering.value !== null;
  return (
    <div class="actions">
      <Alternatives turn={turn} />
      <IconButton icon={copied.value ? "check" : "copy"} label={copied.value ? "Copied" : "Copy"} onClick={copyText} />
      {turn.role === "user" ? (
        <IconButton icon="edit" label="Edit" disabled={busy} onClick={() => (editing.value = turn.id)} />
      ) : (
        <IconButton icon="again" label="Answer again" disabled={busy} onClick={() => regenerate(turn)} />
      )}
      {turn.role === "assistant" && <Facts turn={turn} />}
    </div>
  );
}

function Alternatives({ turn }: { turn: Turn }) {
  const all = alternatives(current.value!, turn);
  if (all.length < 2) return null;
  const at = all.findIndex((one) => one.id === turn.id);
  const what = turn.role === "user" ? "message" : "answer";
  return (
    <span class="alternatives">
      <IconButton
        icon="left"
        label={`Previous ${what}`}
        disabled={at === 0}
        onClick={() => showAlternative(turn, -1)}
      />
      <span>
        {at + 1}/{all.length}
      </span>
      <IconButton
        icon="right"
        label={`Next ${what}`}
        disabled={at === all.length - 1}
        onClick={() => showAlternative(turn, 1)}
      />
    </span>
  );
}

const ENDS: Record<string, string> = { length: "cut at the limit", stopped: "stopped", content_filter: "filtered" };

function Facts({ turn }: { turn: Turn }) {
  const omitted = turn.omitted && `without the oldest ${turn.omitted.toLocaleString()} tokens`;
  const facts = [turn.model, turn.stats && speed(turn.stats), ENDS[turn.finish ?? ""], omitted];
  const title = turn.stats && `${turn.stats.completionTokens} tokens, the first after ${turn.stats.first.toFixed(2)} s`;
  return (
    <span class="facts" title={title}>
      {facts.filter(Boolean).join(" · ")}
    </span>
  );
}

/** The first token came with the prompt: the time after it is that of the others. */
function speed({ completionTokens, seconds }: Stats): string {
  if (completionTokens < 2 || seconds <= 0) return "";
  const rate = (completionTokens - 1) / seconds;
  return `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`;
}
