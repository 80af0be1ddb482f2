// Keyboard shortcuts of a whole page. They do nothing while a person types, or while a dialog is
// open.
import { useLayoutEffect } from "preact/hooks";

export function useKeys(actions: Record<string, () => void>): void {
  // Runs before the paint. Otherwise, a key that is pressed as soon as a page is visible would be
  // lost.
  useLayoutEffect(() => {
    const act = (event: KeyboardEvent) => {
      const isTyping = event.target instanceof Element && event.target.matches("input, select");
      const isOther = event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented;
      const action = actions[event.key];
      if (!action || isTyping || isOther || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      action();
    };
    addEventListener("keydown", act);
    return () => removeEventListener("keydown", act);
  });
}
