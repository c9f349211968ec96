/** Time, which is handed in: not every engine has timers. socket.node.ts has those of Node. */
export interface Timers {
  /** Milliseconds of a clock that is never set. */
  now(): number;
  /** Calls `run` once, after `ms`. @returns what `clear` takes */
  set(ms: number, run: () => void): unknown;
  clear(timer: unknown): void;
}

/** The longest that timers are asked for: Node's end at once above. Nobody waits for 24 days. */
const LONGEST_MS = 0x7fff_ffff;

/** A timer for a deadline; nothing where it is too far away for one. */
export function setDeadline(timers: Timers, ms: number, run: () => void): unknown {
  return ms > LONGEST_MS ? undefined : timers.set(ms, run);
}
