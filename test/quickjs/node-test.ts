/**
 * `node:test` for the executable's engine: what unit tests use of it, a synchronous `test(name, fn)`.
 * scripts/unit.ts bundles the tests with this in place of Node's; `report` runs them all.
 */

import { sys } from "../../src/sys/native.ts";

const tests: { name: string; run: () => void }[] = [];

export function test(name: string, run: () => void): void {
  tests.push({ name, run });
}

/** Runs every test that the bundle registered and prints what Node's runner would count. Gives the exit code. */
export function report(): number {
  let failed = 0;
  for (const { name, run } of tests) {
    try {
      const result: unknown = run();
      if (result !== undefined) throw new Error("the test is asynchronous: it would not be waited for");
    } catch (thrown) {
      failed++;
      const e = thrown as Error;
      sys.out(`not ok - ${name}\n  ${String(e?.message ?? e)}\n${e?.stack ?? ""}\n`);
    }
  }
  sys.out(`QuickJS: ${tests.length - failed} passed, ${failed} failed\n`);
  return failed === 0 && tests.length > 0 ? 0 : 1;
}
