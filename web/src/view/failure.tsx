/* What went wrong with an answer, and the way on. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import type { Failure, Turn } from "../data/conversation";
import { focusComposer } from "../layout";
import { answering, asksForKey, regenerate, show } from "../state";

const TITLES: Record<Failure["kind"], string> = {
  offline: "The server is not there",
  key: "The key was not accepted",
  forbidden: "The key may not use this model",
  busy: "The server is busy",
  context: "The conversation is longer than the model can read",
  missing: "The server does not have this model",
  refused: "The server refused the request",
  server: "The answer failed",
  cut: "The answer broke off",
};

export function FailureNote({ turn, last }: { turn: Turn; last: boolean }) {
  const { kind, message, retryAfter = 0 } = turn.failure!;
  const wait = useSignal(Math.ceil(last ? retryAfter - (Date.now() - turn.created) / 1000 : 0));
  useEffect(() => {
    if (wait.value <= 0) return;
    const timer = setInterval(() => (wait.value -= 1) <= 0 && clearInterval(timer), 1000);
    return () => clearInterval(timer);
  }, []);
  return (
    <div class="failure" role={last ? "alert" : undefined}>
      <p>
        <strong>{TITLES[kind]}</strong>
      </p>
      <p>{message}</p>
      {last && (
        <div class="row">
          {kind === "key" && (
            <button type="button" class="button" onClick={() => (asksForKey.value = true)}>
              Enter a key
            </button>
          )}
          {kind === "context" && (
            <>
              <button type="button" class="button" onClick={begin}>
                New chat
              </button>
              <button type="button" class="button" onClick={() => regenerate(turn, true)}>
                Answer without the oldest part
              </button>
            </>
          )}
          <button
            type="button"
            class="button"
            disabled={wait.value > 0 || answering.value !== null}
            onClick={() => regenerate(turn)}
          >
            {wait.value > 0 ? `Try again in ${wait.value} s` : "Try again"}
          </button>
        </div>
      )}
    </div>
  );
}

function begin(): void {
  show(null);
  focusComposer();
}
