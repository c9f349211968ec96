import { getHeapStatistics, setFlagsFromString } from "node:v8";

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

/** Of Node 20's V8, after which a function is compiled by the optimizer. At the start it is more (scripts/build.ts). */
const BUDGET = 67_584;

/**
 * From now on what is called often is optimized, which all containers of the node wait for. What runs at the start only is
 * not: it would bring 5 MB of the compiler into memory, on nodes too where no container is ever created.
 */
export function optimizeFromNow(): void {
  // Node 22 does not know it.
  if (Number.parseInt(process.versions.node, 10) < 22) setFlagsFromString(`--interrupt-budget=${BUDGET}`);
}
