// Keys and buttons that are down when the window loses the keyboard: their releases go to whatever has it then, and the
// stream would take them for held for ever. Alt+Tab leaves Alt so, each time.

/** A key by where it is, or by its code where the browser can't tell that. */
const nameOf = ({ code, keyCode }: KeyboardEvent): string => code || String(keyCode);

/**
 * Releases what is held as the window loses the keyboard or is hidden, by events like those that the browser does not
 * send: the library makes its messages of them. `stage` is what shows the stream.
 */
export function letGo(stage: HTMLElement): void {
  const keys = new Map<string, KeyboardEvent>();
  const buttons = new Map<number, MouseEvent>();
  const releaseKeys = (): void => {
    for (const { key, code, keyCode, location } of [...keys.values()]) {
      document.dispatchEvent(new KeyboardEvent('keyup', { key, code, keyCode, location, bubbles: true }));
    }
    keys.clear();
  };
  const releaseAll = (): void => {
    releaseKeys();
    for (const { button, clientX, clientY } of [...buttons.values()]) {
      stage.dispatchEvent(new MouseEvent('mouseup', { button, clientX, clientY, bubbles: true, cancelable: true }));
    }
    buttons.clear();
  };
  document.addEventListener('keydown', (event) => keys.set(nameOf(event), event));
  document.addEventListener('keyup', (event) => {
    keys.delete(nameOf(event));
    // While Command is held, macOS tells of no other key's release.
    if (event.key === 'Meta') releaseKeys();
  });
  stage.addEventListener('mousedown', (event) => buttons.set(event.button, event), true);
  window.addEventListener('mouseup', (event) => buttons.delete(event.button), true);
  window.addEventListener('blur', releaseAll);
  document.addEventListener('visibilitychange', () => document.hidden && releaseAll());
}
