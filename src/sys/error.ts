/**
 * An expected refusal: something outside the program is not as it must be.
 *
 * `code` is stable (`E_...`, listed in docs/errors.md) and is what a caller matches on. `what` names the file, the
 * field and the offending value; `remedy` says what to do. Neither ends with a full stop.
 */
export class SluiceError extends Error {
  override readonly name = "SluiceError";
  readonly code: string;
  readonly what: string;
  readonly remedy: string;

  /** By shape: the executable loads parts as bundles of their own, each with its own copy of this class. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    return (value as SluiceError | undefined)?.name === "SluiceError";
  }

  constructor(code: string, what: string, remedy: string, cause?: unknown) {
    super(`${code}: ${what}; ${remedy}`, { cause });
    this.code = code;
    this.what = what;
    this.remedy = remedy;
  }
}

/** Characters of a path in a message. */
const MAX_PATH = 300;

/** A system call that failed. `code` is the errno name (`ENOENT`); `path` is empty where the call has none. */
export class OsError extends Error {
  override readonly name = "OsError";
  readonly code: string;
  readonly syscall: string;
  readonly path: string;

  /** By shape, as for `SluiceError`. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    return (value as OsError | undefined)?.name === "OsError";
  }

  constructor(code: string, syscall: string, path: string) {
    const shown = path.length > MAX_PATH ? `${path.slice(0, MAX_PATH)}...` : path;
    super(path === "" ? `${syscall}: ${code}` : `${syscall} ${shown}: ${code}`);
    this.code = code;
    this.syscall = syscall;
    this.path = path;
  }
}

/** Control characters, and invisible or direction-changing ones. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones meant
const UNPRINTABLE = /[\0-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** A text that may hold what others wrote, fit to be shown: it stays one line and does not drive the terminal. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/**
 * A value from outside, made fit for an error message: escaped (a hostile name must not draw on the reader's terminal
 * or forge a log line), and cut at `max` characters.
 */
export function quote(value: string, max = 100): string {
  const escaped = printable(JSON.stringify(value.length > max ? value.slice(0, max) : value));
  return value.length > max ? `${escaped.slice(0, -1)}..." (${value.length} characters)` : escaped;
}

/** The text of whatever was thrown, for a message that wraps it. */
export function reasonOf(thrown: unknown): string {
  return thrown instanceof SluiceError ? thrown.what : thrown instanceof Error ? thrown.message : String(thrown);
}

/** The one line in which every failure is told: `sluice: E_CODE: what happened; what to do`. */
export function errorLine(thrown: unknown): string {
  return printable(`sluice: ${messageOf(thrown)}`);
}

function messageOf(thrown: unknown): string {
  if (thrown instanceof SluiceError) return thrown.message;
  const text = thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : String(thrown);
  return `E_INTERNAL: ${text}; this is a defect of Sluice, please report it with the lines below`;
}
