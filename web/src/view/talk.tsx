/* The shown branch of a conversation, and what stands there before there is one. */

import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";

import { branch } from "../data/conversation";
import type { Failure } from "../data/conversation";
import { answering, asksForKey, current, findModels, models, trouble } from "../state";
import { Icon } from "./icons";
import { copyCode } from "./markdown";
import { Message } from "./message";

const NEAR = 60; // pixels from the end within which the view follows the answer

export function Talk() {
  const scroller = useRef<HTMLDivElement>(null);
  const following = useSignal(true);
  const turns = current.value ? branch(current.value) : [];
  const live = answering.value?.turn;

  const toEnd = (): void => {
    scroller.current?.scrollTo(0, scroller.current.scrollHeight);
  };
  // A new message is always shown; while an answer grows, the view follows unless the reader has scrolled away.
  useLayoutEffect(() => {
    following.value = true;
    toEnd();
  }, [turns.length]);
  useEffect(() => {
    const inside = scroller.current!.firstElementChild!;
    const observer = new ResizeObserver(() => following.value && toEnd());
    observer.observe(inside);
    return () => observer.disconnect();
  }, []);

  const scrolled = (): void => {
    const { scrollTop, scrollHeight, clientHeight } = scroller.current!;
    following.value = scrollHeight - scrollTop - clientHeight < NEAR;
  };
  return (
    <div
      class="talk"
      ref={scroller}
      onScroll={scrolled}
      onClick={copyCode}
      tabIndex={turns.length ? 0 : undefined}
      role={turns.length ? "region" : undefined}
      aria-label={turns.length ? "Conversation" : undefined}
    >
      <div class="column">
        {turns.length === 0 && <Welcome />}
        {turns.map((turn, at) => (
          <Message
            key={turn.id}
            turn={live?.value.id === turn.id ? live.value : turn}
            live={live?.value.id === turn.id}
            last={at === turns.length - 1}
          />
        ))}
      </div>
      {!following.value && (
        <button type="button" class="jump" aria-label="Go to the end" title="Go to the end" onClick={toEnd}>
          <Icon name="down" />
        </button>
      )}
    </div>
  );
}

function Welcome() {
  if (trouble.value) return <Trouble failure={trouble.value} />;
  if (models.value === null) return <div class="welcome" aria-busy="true" />;
  if (models.value.length === 0) {
    return (
      <div class="welcome">
        <h2>No model to talk to</h2>
        <p>
          This server has no chat model. Start it with one: <code>herder serve smollm2</code>
        </p>
      </div>
    );
  }
  return (
    <div class="welcome">
      <h2>What is on your mind?</h2>
      <p>Answers come from {location.hostname}. Conversations stay in this browser.</p>
    </div>
  );
}

function Trouble({ failure }: { failure: Failure }) {
  const isKey = failure.kind === "key";
  const offline = failure.kind === "offline";
  return (
    <div class="welcome" role="alert">
      <h2>
        {isKey ? "This server asks for a key" : offline ? "The server is not there" : "The models could not be listed"}
      </h2>
      <p>{offline ? `Nothing answers at ${location.host}. Is herder serve still running?` : failure.message}</p>
      <button type="button" class="button" onClick={() => (isKey ? (asksForKey.value = true) : void findModels())}>
        {isKey ? "Enter a key" : "Try again"}
      </button>
    </div>
  );
}
