import { getHeapStatistics } from "node:v8";

/** Bytes of garbage that may lie about. */
const GROWTH = 2 << 20;
/** Milliseconds between two looks. */
const INTERVAL = 2000;

/**
 * Sweeps the heap when it has grown: V8 left to itself lets a heap this small double before it does. It takes some 20 ms,
 * at most once in an interval, and nothing where nothing happens. Needs `--expose-gc`.
 */
export function keepHeapSmall(): void {
  const { gc } = globalThis;
  if (gc === undefined) return;
  let live = 0;
  setInterval(() => {
    if (getHeapStatistics().used_heap_size < live + GROWTH) return;
    gc();
    live = getHeapStatistics().used_heap_size;
  }, INTERVAL).unref();
}
