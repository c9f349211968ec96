/** Time, so that tests need not wait for it. */
export interface Clock {
  /** Milliseconds. Only differences mean anything. */
  now(): number;
  /** Calls back once after so many milliseconds; the function that it gives prevents that. */
  after(ms: number, call: () => void): () => void;
}

export const systemClock: Clock = {
  now: () => performance.now(),
  after(ms, call) {
    const timer = setTimeout(call, ms);
    return () => clearTimeout(timer);
  },
};
